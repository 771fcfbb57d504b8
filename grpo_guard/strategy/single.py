"""One process on one device."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from grpo_guard.parallel.costs import WHOLE, PolicyCalls, PolicySizes, Shares, Traffic
from grpo_guard.parallel.learner import Learner, Optimization, TorchLearner
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.schema import component, require


@component
class Single:
    """Train in one process on one device."""

    device: str
    """auto (a GPU if there is one, else the CPU), cpu, cuda or cuda:N."""
    threads: int | None
    """CPU threads of the process; null leaves the number to PyTorch."""
    processes: ClassVar[int] = 1
    shares: ClassVar[Shares] = WHOLE

    def __post_init__(self) -> None:
        kind = self.device.split(":")[0]
        require(
            kind in ("auto", "cpu", "cuda"),
            f"device={self.device} is unknown; choose auto, cpu, cuda or cuda:N",
        )
        require(
            kind != "cuda" or torch.cuda.is_available(),
            f"device={self.device}, but this machine has no GPU; use device=auto or cpu",
        )
        require(
            self.threads is None or self.threads > 0,
            f"threads={self.threads} is not positive; null uses all cores",
        )

    def start(self) -> Ranks:
        """Set the number of threads and return the device as the only rank."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        return Ranks(device=torch.device(auto if self.device == "auto" else self.device))

    def count_traffic(self, sizes: PolicySizes, calls: PolicyCalls) -> Traffic:
        """Return nothing: a single process exchanges nothing."""
        return {}

    def place(self, policy: nn.Module, recipe: Optimization, ranks: Ranks) -> Learner:
        """Train the policy where it is."""
        return TorchLearner(policy, recipe)
