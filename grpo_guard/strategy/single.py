"""One process on one device."""

from __future__ import annotations

import os
from typing import Annotated, ClassVar

import torch
from torch import nn

from grpo_guard.parallel.costs import WHOLE, PolicyCalls, PolicySizes, Shares, Traffic
from grpo_guard.parallel.kernels import choose_kernels
from grpo_guard.parallel.launched import set_threads, world_size
from grpo_guard.parallel.learner import Learner, Optimization, TorchLearner
from grpo_guard.parallel.ranks import Device, Ranks
from grpo_guard.schema import Advice, AtMost, PositiveInt, component, require


@component
class Single:
    """Train in one process on one device."""

    device: Device
    """auto (a GPU if there is one, else the CPU), cpu, cuda or cuda:N."""
    threads: Annotated[PositiveInt | None, AtMost(1024), Advice("null uses all cores")]
    """CPU threads of the process; null leaves the number to PyTorch."""
    deterministic: bool = False
    """True: on a GPU, use only kernels that give the same numbers every time, where torch has them.

    That is slower. Without it, a repeated or resumed run agrees to rounding only; on the CPU it is
    the same in any case.
    """
    processes: ClassVar[int] = 1
    shares: ClassVar[Shares] = WHOLE

    def __post_init__(self) -> None:
        kind, _, number = self.device.partition(":")
        require(
            kind != "cuda" or torch.cuda.is_available(),
            f"device={self.device}, but this machine has no GPU; use device=auto or cpu",
        )
        require(
            kind != "cuda" or int(number or 0) < torch.cuda.device_count(),
            f"device={self.device}, but this machine has {torch.cuda.device_count()} GPUs;"
            " count them from 0",
        )

    def start(self) -> Ranks:
        """Set the number of threads and return the device as the only rank.

        Raises ConfigError if a launcher has started this process as one of several.
        """
        several = world_size() not in (None, 1)
        name = "WORLD_SIZE" if several else "RANK"
        value = os.environ.get(name, "0")
        require(
            not several and value == "0",
            f"{name}={value} is in the environment, but strategy=single is one process; choose"
            f" strategy=ddp, or unset {name} if no launcher runs",
        )
        set_threads(self.threads)
        choose_kernels(self.deterministic)
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(auto if self.device == "auto" else self.device)
        if device.type == "cuda" and device.index is not None:
            # CUDA starts with this; asking a numbered GPU for its memory before that is an error.
            torch.cuda.set_device(device)
        return Ranks(device=device)

    def count_traffic(self, sizes: PolicySizes, calls: PolicyCalls) -> Traffic:
        """Return nothing: a single process exchanges nothing."""
        return {}

    def place(self, policy: nn.Module, recipe: Optimization, ranks: Ranks) -> Learner:
        """Train the policy where it is."""
        return TorchLearner(policy, recipe)
