"""A progress display on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from jaxtyping import Float
from rich.console import Console as Terminal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from grpo_guard.logger import Run, Sink
from grpo_guard.metrics import Metrics
from grpo_guard.types import Verdict, component

HEADLINES = (
    "reward/total",
    "eval/proxy/",
    "eval/gold/exact",
    "eval/gold/clean",
    "throughput/images_per_s",
)


class _Headlines:
    """The latest value of every number worth a glance."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}

    def read(self, metrics: Metrics) -> str:
        self.latest |= {k: m.value for k, m in metrics.items() if k.startswith(HEADLINES)}
        return "  ".join(f"{_short(k)} {v:.3g}" for k, v in self.latest.items())


def _short(key: str) -> str:
    return (
        key.removeprefix("eval/")
        .replace("reward/total", "reward")
        .replace("throughput/images_per_s", "images/s")
    )


class _Bar:
    def __init__(self, progress: Progress, run: Run) -> None:
        self.progress, self.headlines = progress, _Headlines()
        self.task = progress.add_task(run.folder.name, total=run.iterations, news="")

    def log(self, iteration: int, metrics: Metrics) -> None:
        done = min(iteration + 1, int(self.progress.tasks[self.task].total or 0))
        self.progress.update(self.task, completed=done, news=self.headlines.read(metrics))

    def show(
        self,
        iteration: int,
        images: Float[Tensor, "N 3 H W"],
        captions: Sequence[str],
        verdicts: Sequence[Verdict],
    ) -> None:
        """Pictures are for the files."""


class _Lines:
    def __init__(self, run: Run) -> None:
        self.run, self.headlines, self.start = run, _Headlines(), time.perf_counter()

    def log(self, iteration: int, metrics: Metrics) -> None:
        done = min(iteration + 1, self.run.iterations)
        left = (time.perf_counter() - self.start) / done * (self.run.iterations - done)
        news = f"{done}/{self.run.iterations}  {self.headlines.read(metrics)}  left {left // 60:.0f}:{left % 60:02.0f}"
        print(f"{self.run.folder.name}  {news}", file=sys.stderr, flush=True)

    def show(
        self,
        iteration: int,
        images: Float[Tensor, "N 3 H W"],
        captions: Sequence[str],
        verdicts: Sequence[Verdict],
    ) -> None:
        """Pictures are for the files."""


@component
class Console:
    """Iteration, reward, held-out proxy and gold, images/s and time left.

    A live bar on a terminal; a line per iteration where there is none, or where `live` is off because several runs
    share it.
    """

    live: bool

    @contextmanager
    def open(self, run: Run) -> Iterator[Sink]:
        """A display on standard error."""
        terminal = Terminal(stderr=True)
        if not (self.live and terminal.is_terminal):
            yield _Lines(run)
            return
        bar = (
            TextColumn("{task.description}"),
            BarColumn(20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(
            *bar, TimeRemainingColumn(), TextColumn("{task.fields[news]}"), console=terminal
        ) as progress:
            yield _Bar(progress, run)
