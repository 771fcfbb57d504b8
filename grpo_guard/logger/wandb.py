"""Weights & Biases, as a view of the run folder."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from grpo_guard.logger import Run, Sink
from grpo_guard.metrics import Histogram, Metrics
from grpo_guard.types import Verdict, component, require

journal = logging.getLogger(__name__)


class _Board:
    """Shows a run until it fails, and then no more of it: the run folder has everything anyway."""

    def __init__(self, board: Any) -> None:
        self.board, self.lost = board, False
        self.attempt(lambda: board.define_metric("*", step_metric="iteration"))

    def log(self, iteration: int, metrics: Metrics) -> None:
        self._send(iteration, lambda: {k: _shown(m) for k, m in metrics.items()})

    def show(
        self,
        iteration: int,
        images: Float[Tensor, "N 3 H W"],
        captions: Sequence[str],
        verdicts: Sequence[Verdict],
    ) -> None:
        import wandb

        shown = list(zip(images, map(_told, captions, verdicts), strict=True))
        self._send(
            iteration,
            lambda: {"samples": [wandb.Image(image.cpu(), caption=text) for image, text in shown]},
        )

    def _send(self, iteration: int, row: Callable[[], Mapping[str, Any]]) -> None:
        if not self.lost:
            self.attempt(lambda: self.board.log({"iteration": iteration, **row()}))

    def attempt(self, step: Callable[[], object]) -> None:
        """A step that may fail; the first that does is told in one line."""
        try:
            step()
        except _failures() as error:
            if not self.lost:
                journal.warning(
                    "Weights & Biases shows no more of this run (%s); the run folder does",
                    _line(error),
                )
            self.lost = True


def _failures() -> tuple[type[Exception], ...]:
    """What W&B raises where its server, its process or its files fail it."""
    import wandb
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    return wandb.Error, OSError, HandleAbandonedError, MailboxClosedError


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _told(caption: str, verdict: Verdict) -> str:
    """The prompt and what rewards say of the picture, a line each."""
    return "\n".join(
        [caption, *(f"{name}: {line}" for name, lines in verdict.notes.items() for line in lines)]
    )


def _shown(metric: Any) -> Any:
    if not isinstance(metric, Histogram):
        return metric.value
    import wandb

    return wandb.Histogram(np_histogram=(metric.counts.numpy(), metric.edges.numpy()))


def _identity(folder: Path) -> str:
    """The name that a run keeps when it goes on, made once."""
    file = folder / "wandb_id"
    if not file.exists():
        file.write_text(secrets.token_hex(4), encoding="utf-8")
    return file.read_text(encoding="utf-8")


@component
class WandB:
    """Logs to a project; offline, to be sent later by `wandb sync`, where no account is set up. Never asks for one.

    Offline also where the server does not let it in within `timeout` seconds; it has as many at the end. Whatever fails
    during a run is told once, and the run goes on without.
    """

    project: str
    entity: str | None = None
    timeout: float = 90.0

    def __post_init__(self) -> None:
        require(self.timeout > 0, f"timeout={self.timeout} is not positive; give seconds")

    @contextmanager
    def open(self, run: Run) -> Iterator[Sink]:
        """A board that is finished on the way out."""
        board = _Board(self._begin(run))
        try:
            yield board
        finally:
            board.attempt(board.board.finish)

    def _begin(self, run: Run) -> Any:
        """W&B's own run: as its settings want it if that can be, else offline."""
        import wandb

        if not wandb.login(prompt=False, verify=False):
            return self._init(run, "offline")
        try:
            return self._init(run, None)
        except wandb.errors.CommError as error:
            journal.warning(
                "Weights & Biases cannot be reached (%s); it runs offline", _line(error)
            )
            wandb.teardown()  # its process still has the run's id in use
            return self._init(run, "offline")

    def _init(self, run: Run, mode: Literal["offline"] | None) -> Any:
        import wandb

        settings = wandb.Settings(
            silent=True, console="off", init_timeout=self.timeout,
            finish_timeout=self.timeout, finish_timeout_raises=True,
        )  # fmt: skip
        return wandb.init(
            project=self.project, entity=self.entity, name=run.folder.name, dir=run.folder,
            config=dict(run.config), mode=mode, settings=settings, id=_identity(run.folder), resume="allow",
        )  # fmt: skip
