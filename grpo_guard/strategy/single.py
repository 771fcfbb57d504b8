"""One process on one device."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from grpo_guard.parallel.learner import Learner, Optimization
from grpo_guard.parallel.ranks import Ranks, single_process
from grpo_guard.types import component, require


@component
class Single:
    """`device` is auto (a GPU if there is one), cpu, cuda or cuda:N; `threads` limits the CPU threads of a process."""

    device: str
    threads: int | None
    processes: ClassVar[int] = 1

    def __post_init__(self) -> None:
        kind = self.device.split(":")[0]
        require(
            kind in ("auto", "cpu", "cuda"),
            f"device={self.device} is unknown; choose auto, cpu, cuda or cuda:N",
        )
        require(
            kind != "cuda" or torch.cuda.is_available(),
            f"device={self.device} is not here; use device=auto or cpu",
        )
        require(
            self.threads is None or self.threads > 0,
            f"threads={self.threads} is not positive; null uses all cores",
        )

    def start(self) -> Ranks:
        """The device, with the process's threads set."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        return single_process(torch.device(auto if self.device == "auto" else self.device))

    def place(self, policy: nn.Module, recipe: Optimization, ranks: Ranks) -> Learner:
        """The policy as it is."""
        return Learner(policy, recipe)
