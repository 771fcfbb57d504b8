"""No average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from torch import nn

from grpo_guard.ema import Averaged
from grpo_guard.schema import component


@component
class NoEma:
    """Let evaluations and checkpoints use the weights as they are."""

    every: ClassVar[int] = 1
    device_copies: ClassVar[int] = 0

    def follow(self, parameters: Sequence[nn.Parameter]) -> Averaged:
        """Return an average that does nothing."""
        return _PresentWeights()


class _PresentWeights:
    """Stands in for an average; it keeps nothing and changes no weights."""

    def __call__(self) -> AbstractContextManager[None]:
        return nullcontext()

    def update(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass
