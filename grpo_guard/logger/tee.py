"""Several loggers as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from jaxtyping import Float
from torch import Tensor

from grpo_guard.logger import Logger, Run, Sink
from grpo_guard.metrics import Metrics
from grpo_guard.types import Verdict, component


class _Sinks:
    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = sinks

    def log(self, iteration: int, metrics: Metrics) -> None:
        for sink in self.sinks:
            sink.log(iteration, metrics)

    def show(
        self,
        iteration: int,
        images: Float[Tensor, "N 3 H W"],
        captions: Sequence[str],
        verdicts: Sequence[Verdict],
    ) -> None:
        for sink in self.sinks if len(images) else ():
            sink.show(iteration, images, captions, verdicts)


@component
class Tee:
    """Passes everything to every logger, in order."""

    sinks: Mapping[str, Logger]

    @contextmanager
    def open(self, run: Run) -> Iterator[Sink]:
        """All sinks, closed in reverse order."""
        with ExitStack() as stack:
            yield _Sinks([stack.enter_context(logger.open(run)) for logger in self.sinks.values()])
