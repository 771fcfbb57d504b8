"""Where a run's numbers and pictures go. The run folder is the truth; the rest are views of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from grpo_guard.metrics import Metrics
from grpo_guard.types import Verdict, record


@record
class Run:
    """What a sink is told about a run before it starts; `config` is the composed configuration.

    A run that goes on begins at iteration `start`: what was logged of it and of later ones is to be forgotten.
    """

    folder: Path
    config: Mapping[str, Any]
    iterations: int
    start: int = 0


@runtime_checkable
class Sink(Protocol):
    """An open destination."""

    def log(self, iteration: int, metrics: Metrics) -> None:
        """Take the numbers of an iteration."""

    def show(
        self,
        iteration: int,
        images: Float[Tensor, "N 3 H W"],
        captions: Sequence[str],
        verdicts: Sequence[Verdict],
    ) -> None:
        """Take sample images in [0, 1] and what rewards say of each."""


class _Silent:
    def log(self, iteration: int, metrics: Metrics) -> None:
        """Nothing."""

    def show(
        self,
        iteration: int,
        images: Float[Tensor, "N 3 H W"],
        captions: Sequence[str],
        verdicts: Sequence[Verdict],
    ) -> None:
        """Nothing."""


SILENT: Sink = _Silent()
"""Takes everything and keeps nothing."""


@runtime_checkable
class Logger(Protocol):
    """The recipe of a sink."""

    def open(self, run: Run) -> AbstractContextManager[Sink]:
        """A sink that is flushed and closed on the way out, however a run ends."""
