"""A progress display on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO, cast

from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from grpo_guard.lasting import LastingStream
from grpo_guard.logger import RunInfo, Sink
from grpo_guard.metrics import Metrics
from grpo_guard.schema import component
from grpo_guard.types import Pictures

HEADLINES = (
    "reward/total",
    "eval/proxy/",
    "eval/gold/exact",
    "eval/gold/clean",
    "throughput/images_per_s",
)
"""Beginnings of the metric keys that the display shows; a line has room for few."""
GAP = "  "
"""What stands between two scores."""
COLUMNS = 80
"""Columns of a line that is written to a file."""
BAR = 16
"""Columns of the bar."""
BESIDES_THE_NAME = BAR + len("/") + len("left") + len("0:00:00") + 4
"""Columns of a line of the display without the name of the run and the counter's digits."""


class _Headlines:
    """The latest value of each headline metric.

    Evaluations are rare, so their values stay on display.
    """

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}

    def update(self, metrics: Metrics) -> list[str]:
        """Take new values and return the texts to display, one for each metric."""
        self.latest |= {k: m.value for k, m in metrics.items() if k.startswith(HEADLINES)}
        return [f"{_shorten(k)} {v:.3g}" for k, v in self.latest.items()]


def _shorten(key: str) -> str:
    return (
        key.removeprefix("eval/")
        .replace("reward/total", "reward")
        .replace("throughput/images_per_s", "images/s")
    )


def shorten_name(name: str, columns: int) -> str:
    """Return the end of a name that is too long: it differs there from those of other runs."""
    return name if len(name) <= columns else f"…{name[len(name) - columns + 1 :]}"


def join_scores(scores: Sequence[str], columns: int | None = None) -> str:
    """Join the first scores of a line, as many as fit into its columns whole."""
    count = len(scores)
    while columns is not None and count > 1 and len(GAP.join(scores[:count])) > columns:
        count -= 1
    return GAP.join(scores[:count])


class _Display(Progress):
    """A bar with the counter and the time left, and the scores on a line below it."""

    scores = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the lines of the display."""
        yield self.make_tasks_table(self.tasks)
        yield Text(self.scores, overflow="ellipsis", no_wrap=True)


class _Bar:
    def __init__(self, display: _Display, run: RunInfo) -> None:
        self.display = display
        self.headlines = _Headlines()
        room = display.console.width - BESIDES_THE_NAME - 2 * len(str(run.iterations))
        name = shorten_name(run.folder.name, max(room, 8))
        self.task = display.add_task(name, total=run.iterations, completed=run.start)

    def log(self, iteration: int, metrics: Metrics) -> None:
        done = min(iteration + 1, int(self.display.tasks[self.task].total or 0))
        scores = self.headlines.update(metrics)
        self.display.scores = join_scores(scores, self.display.console.width)
        self.display.update(self.task, completed=done)

    def show(self, iteration: int, pictures: Pictures) -> None:
        """Show nothing: a terminal has no pictures."""


class _Lines:
    def __init__(self, run: RunInfo) -> None:
        self.run = run
        self.stream = LastingStream.wrap(sys.stderr)
        self.headlines = _Headlines()
        self.start = time.perf_counter()

    def log(self, iteration: int, metrics: Metrics) -> None:
        done = min(iteration + 1, self.run.iterations)
        per_iteration = (time.perf_counter() - self.start) / max(done - self.run.start, 1)
        minutes, seconds = divmod(round(per_iteration * (self.run.iterations - done)), 60)
        place = f"{done}/{self.run.iterations}  left {minutes}:{seconds:02d}"
        name = shorten_name(self.run.folder.name, COLUMNS - len(place) - 2)
        scores = join_scores(self.headlines.update(metrics))
        self.stream.write(f"{name}  {place}\n  {scores}\n")
        self.stream.flush()

    def show(self, iteration: int, pictures: Pictures) -> None:
        """Show nothing: a terminal has no pictures."""


@component
class Console:
    """Show the iteration, the headline metrics and the time left on standard error.

    If standard error is closed or nobody reads it, the run goes on without this display.
    """

    live: bool
    """True: a progress bar on a terminal, and one line per iteration elsewhere. False: always
    lines, as for several runs that share a terminal.
    """

    @contextmanager
    def open(self, run: RunInfo) -> Iterator[Sink]:
        """Open the display."""
        stream = LastingStream.wrap(sys.stderr)
        if run.plan:
            stream.write(f"{run.plan}\n")
        # rich's own answer to a broken pipe is to end the process.
        terminal = Terminal(file=cast(TextIO, stream))
        if not (self.live and terminal.is_terminal):
            yield _Lines(run)
            return
        display = _Display(
            TextColumn("{task.description}", markup=False),
            BarColumn(BAR),
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=terminal,
        )
        with display:
            yield _Bar(display, run)
