"""Devices and collectives: the only place that knows ranks."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from grpo_guard.metrics import Metrics


@runtime_checkable
class Strategy(Protocol):
    """Where a run computes."""

    @property
    def processes(self) -> int:
        """How many there are."""

    def start(self) -> torch.device:
        """Take the device; raises ConfigError if there is none of that kind."""

    def reduce(self, metrics: Metrics) -> Metrics:
        """The metrics of all processes added up."""
