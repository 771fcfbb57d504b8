"""How a run is spread over devices: one process, copies (ddp), or shards (fsdp, zero)."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from grpo_guard.parallel.costs import PolicyCalls, PolicySizes, Shares, Traffic
from grpo_guard.parallel.learner import Learner, Optimization
from grpo_guard.parallel.ranks import Ranks


@runtime_checkable
class Strategy(Protocol):
    """Chooses the device of every process and distributes the policy over them."""

    @property
    def processes(self) -> int:
        """Number of processes."""

    @property
    def shares(self) -> Shares:
        """Among how many processes the policy, its gradients and optimizer states are divided."""

    def count_traffic(self, sizes: PolicySizes, calls: PolicyCalls) -> Traffic:
        """Return the bytes that an iteration without an evaluation exchanges."""

    def start(self) -> Ranks:
        """Take this process's device and join the other processes.

        Raises ConfigError if a device or the other processes are missing.
        """

    def place(self, policy: nn.Module, recipe: Optimization, ranks: Ranks) -> Learner:
        """Distribute the policy, make its optimizer, and return the learner that holds both.

        `policy` is on this process's device. Its parameters may be replaced by shards, so nothing
        may keep the old ones.
        """
