"""Several loggers as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from grpo_guard.logger import Logger, RunInfo, Sink
from grpo_guard.metrics import Metrics
from grpo_guard.schema import component
from grpo_guard.types import Pictures


class _Sinks:
    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = sinks

    def log(self, iteration: int, metrics: Metrics) -> None:
        for sink in self.sinks:
            sink.log(iteration, metrics)

    def show(self, iteration: int, pictures: Pictures) -> None:
        if not len(pictures.images):
            return
        for sink in self.sinks:
            sink.show(iteration, pictures)


@component
class Tee:
    """Pass all numbers and pictures to every logger, in order."""

    sinks: Mapping[str, Logger]
    """The loggers by name, such as folder, console and wandb. The names serve only to set their
    keys.
    """

    @contextmanager
    def open(self, run: RunInfo) -> Iterator[Sink]:
        """Open all sinks; they are closed in reverse order."""
        with ExitStack() as stack:
            yield _Sinks([stack.enter_context(logger.open(run)) for logger in self.sinks.values()])
