"""Weights & Biases, as a view of the run folder."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from jaxtyping import Float
from torch import Tensor

from grpo_guard.logger import RunInfo, Sink
from grpo_guard.metrics import Histogram, Metrics
from grpo_guard.schema import Advice, Positive, component
from grpo_guard.types import ImageScores

journal = logging.getLogger(__name__)


class _Board:
    """Sends a run to W&B until a call fails; the run folder has everything anyway."""

    def __init__(self, board: Any) -> None:
        self.board = board
        self.failed = False
        self.attempt(lambda: board.define_metric("*", step_metric="iteration"))

    def log(self, iteration: int, metrics: Metrics) -> None:
        self._send(iteration, lambda: {key: _to_wandb(m) for key, m in metrics.items()})

    def show(
        self,
        iteration: int,
        images: Float[Tensor, "N 3 H W"],
        captions: Sequence[str],
        image_scores: Sequence[ImageScores],
    ) -> None:
        import wandb

        captioned = list(zip(images, map(_caption, captions, image_scores), strict=True))
        self._send(
            iteration,
            lambda: {"samples": [wandb.Image(image.cpu(), caption=c) for image, c in captioned]},
        )

    def _send(self, iteration: int, row: Callable[[], Mapping[str, Any]]) -> None:
        if not self.failed:
            self.attempt(lambda: self.board.log({"iteration": iteration, **row()}))

    def attempt(self, step: Callable[[], object]) -> None:
        """Run a step that may fail.

        The first failure is reported in one line, later ones not at all.
        """
        try:
            step()
        except _failures() as error:
            if not self.failed:
                journal.warning(
                    "Weights & Biases failed (%s); the rest of this run is only in the run folder",
                    _one_line(error),
                )
            self.failed = True


def _failures() -> tuple[type[Exception], ...]:
    """Return the errors that W&B raises when its server, its process or its files fail."""
    import wandb
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    return wandb.Error, OSError, HandleAbandonedError, MailboxClosedError


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _caption(prompt: str, scores: ImageScores) -> str:
    """Return the prompt and the rewards' notes on the picture, one line each."""
    notes = [f"{name}: {line}" for name, lines in scores.notes.items() for line in lines]
    return "\n".join([prompt, *notes])


def _to_wandb(metric: Any) -> Any:
    if not isinstance(metric, Histogram):
        return metric.value
    import wandb

    return wandb.Histogram(np_histogram=(metric.counts.numpy(), metric.edges.numpy()))


def _run_id(folder: Path) -> str:
    """Return the W&B id of a run folder; a resumed run finds it and continues its curves."""
    file = folder / "wandb_id"
    if not file.exists():
        file.write_text(secrets.token_hex(4), encoding="utf-8")
    return file.read_text(encoding="utf-8")


@component
class WandB:
    """Log to a project of Weights & Biases, and never ask for an account.

    Without an account, or when the server cannot be reached, the run is logged offline, to be sent
    later with `wandb sync`. A failure during a run is reported once, and training continues without
    W&B.
    """

    project: str
    """Name of the W&B project."""
    entity: str | None = None
    """W&B user or team that owns the project; null: the account's default."""
    timeout: Annotated[Positive, Advice("give seconds")] = 90.0
    """Seconds that W&B may take to connect, else the run goes offline, and again to finish."""

    @contextmanager
    def open(self, run: RunInfo) -> Iterator[Sink]:
        """Open a W&B run that is finished when the context exits."""
        board = _Board(self._start(run))
        try:
            yield board
        finally:
            board.attempt(board.board.finish)

    def _start(self, run: RunInfo) -> Any:
        """Start W&B's own run in the mode of its settings if possible, else offline."""
        import wandb

        if not wandb.login(prompt=False, verify=False):
            return self._init(run, "offline")
        try:
            return self._init(run, None)
        except wandb.errors.CommError as error:
            journal.warning(
                "Weights & Biases cannot be reached (%s); this run is logged offline",
                _one_line(error),
            )
            wandb.teardown()  # its process still has the run's id in use
            return self._init(run, "offline")

    def _init(self, run: RunInfo, mode: Literal["offline"] | None) -> Any:
        import wandb

        settings = wandb.Settings(
            silent=True, console="off", init_timeout=self.timeout,
            finish_timeout=self.timeout, finish_timeout_raises=True,
        )  # fmt: skip
        return wandb.init(
            project=self.project, entity=self.entity, name=run.folder.name, dir=run.folder,
            config=dict(run.config), mode=mode, settings=settings,
            id=_run_id(run.folder), resume="allow",
        )  # fmt: skip
