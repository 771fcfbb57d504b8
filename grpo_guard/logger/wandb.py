"""Weights & Biases, as a view of the run folder."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from grpo_guard.logger import Run, Sink
from grpo_guard.metrics import Histogram, Metrics
from grpo_guard.types import component


class _Board:
    def __init__(self, board: Any) -> None:
        self.board = board

    def log(self, iteration: int, metrics: Metrics) -> None:
        self.board.log({"iteration": iteration} | {k: _shown(m) for k, m in metrics.items()})

    def show(self, iteration: int, images: Float[Tensor, "N 3 H W"], captions: Sequence[str]) -> None:
        import wandb

        pictures = [wandb.Image(image.cpu(), caption=c) for image, c in zip(images, captions, strict=True)]
        self.board.log({"iteration": iteration, "samples": pictures})


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
    """Logs to a project; offline, to be sent later by `wandb sync`, where no account is set up. Never asks for one."""

    project: str
    entity: str | None = None

    @contextmanager
    def open(self, run: Run) -> Iterator[Sink]:
        """A board that is finished on the way out."""
        import wandb

        settings = wandb.Settings(silent=True, console="off")
        mode: Literal["online", "offline"] | None = None if wandb.login(prompt=False) else "offline"
        board = wandb.init(
            project=self.project, entity=self.entity, name=run.folder.name, dir=run.folder,
            config=dict(run.config), mode=mode, settings=settings, id=_identity(run.folder), resume="allow",
        )  # fmt: skip
        board.define_metric("*", step_metric="iteration")
        try:
            yield _Board(board)
        finally:
            board.finish()
