"""Devices and collectives: the only place that knows ranks."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from grpo_guard.parallel.learner import Learner, Optimization
from grpo_guard.parallel.ranks import Ranks


@runtime_checkable
class Strategy(Protocol):
    """Where a run computes, and how its processes share a policy."""

    @property
    def processes(self) -> int:
        """How many there are."""

    def start(self) -> Ranks:
        """Take the device and meet the other processes; raises ConfigError where that cannot be."""

    def place(self, policy: nn.Module, recipe: Optimization, ranks: Ranks) -> Learner:
        """The policy with its optimizer, shared out."""
