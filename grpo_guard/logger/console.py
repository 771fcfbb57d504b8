"""A progress display on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from jaxtyping import Float
from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from grpo_guard.logger import Run, Sink
from grpo_guard.metrics import Metrics
from grpo_guard.types import component

HEADLINES = ("reward/total", "eval/proxy/", "eval/gold/", "throughput/images_per_s")


class _Display:
    def __init__(self, progress: Progress, run: Run) -> None:
        self.progress, self.latest = progress, dict[str, float]()
        self.task = progress.add_task(run.folder.name, total=run.iterations, news="loading")

    def log(self, iteration: int, metrics: Metrics) -> None:
        self.latest |= {k: m.value for k, m in metrics.items() if k.startswith(HEADLINES)}
        news = "  ".join(f"{_short(k)} {v:.3g}" for k, v in self.latest.items())
        self.progress.update(self.task, completed=iteration + 1, news=news)
        if not self.progress.console.is_terminal:
            self.progress.console.print(f"iteration {iteration}  {news}", soft_wrap=True)

    def show(self, iteration: int, images: Float[Tensor, "N 3 H W"], captions: Sequence[str]) -> None:
        """Pictures are for the files."""


def _short(key: str) -> str:
    return key.removeprefix("eval/").replace("reward/total", "reward").replace("throughput/images_per_s", "images/s")


@component
class Console:
    """Iteration, reward, held-out proxy and gold, images/s and time left; plain lines where there is no terminal."""

    @contextmanager
    def open(self, run: Run) -> Iterator[Sink]:
        """A live display on standard error."""
        bar = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
        terminal = Terminal(stderr=True)
        with Progress(*bar, TimeRemainingColumn(), TextColumn("{task.fields[news]}"), console=terminal) as progress:
            yield _Display(progress, run)
