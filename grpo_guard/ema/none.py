"""No average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from grpo_guard.ema import Averaged
from grpo_guard.types import component


class _Nothing:
    def __call__(self) -> AbstractContextManager[None]:
        return nullcontext()

    def update(self) -> None:
        """Nothing to keep."""

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Nothing was kept."""


@component
class NoEma:
    """Evaluations and checkpoints see the weights as they are."""

    def follow(self, parameters: Sequence[nn.Parameter]) -> Averaged:
        """Nothing to keep."""
        return _Nothing()
