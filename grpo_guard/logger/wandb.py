"""Weights & Biases, as a view of the run folder."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from grpo_guard.logger import SILENT, RunInfo, Sink
from grpo_guard.logger._run_names import name_run
from grpo_guard.logger._views import (
    AXIS,
    draw_ridgelines,
    most_important_first,
    spread_uniformly,
)
from grpo_guard.logger._wandb_files import last_step
from grpo_guard.logger.folder import read_rows
from grpo_guard.metrics import Histogram, Metrics
from grpo_guard.schema import Advice, Positive, component
from grpo_guard.types import ImageScores, Pictures

journal = logging.getLogger(__name__)


class _Board:
    """Sends a run to W&B until a call fails; the run folder has everything anyway.

    W&B's step is the iteration, and an iteration is one row: what W&B has of a killed run then ends
    with a whole iteration, and a resumed run goes on at the next one. Iterations before `next_step`
    are there already.
    """

    def __init__(self, board: Any, next_step: int) -> None:
        self.board = board
        self.next_step = next_step
        self.pictures: Pictures | None = None
        self.histograms: dict[str, Histogram] = {}
        self.proxy = ""
        self.failed = False
        self.attempt(self._define)

    def _define(self) -> None:
        """Make the iteration the axis of all charts, and keep the highest value of each score."""
        self.board.define_metric("*", step_metric="iteration")
        for key in ("eval/proxy/*", "eval/gold/*", "reward/total"):
            self.board.define_metric(key, step_metric="iteration", summary="last,max")

    def log(self, iteration: int, metrics: Metrics) -> None:
        self._send(iteration, lambda: self._row(metrics))
        self.pictures = None

    def show(self, iteration: int, pictures: Pictures) -> None:
        """Keep pictures for the row of their iteration, which is logged next."""
        self.pictures = pictures

    def fill(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Send the numbers of iterations that W&B lacks, as the run folder has them."""
        for row in rows:
            self._send(int(row["iteration"]), lambda row=row: row)  # type: ignore[misc]

    def _row(self, metrics: Metrics) -> dict[str, Any]:
        """Return everything of an iteration, the most important first."""
        import wandb

        ordered = most_important_first(metrics)
        drawn = {key: m for key, m in ordered.items() if isinstance(m, Histogram)}
        self.histograms = drawn or self.histograms
        row: dict[str, Any] = {key: m.value for key, m in ordered.items() if key not in drawn}
        if any(key.startswith("eval/") for key in row):
            row |= self._compare(row)
            if self.histograms:
                row["ratios"] = wandb.Image(draw_ridgelines(self.histograms))
        if self.pictures is not None:
            pictures = self.pictures
            each = zip(pictures.images.cpu(), pictures.captions, pictures.scores, strict=True)
            row["samples"] = [
                wandb.Image(image, caption=_caption(prompt, scores))
                for image, prompt, scores in each
            ]
        for key, histogram in drawn.items():
            row[key] = wandb.Histogram(np_histogram=(spread_uniformly(histogram), AXIS))
        return row

    def _compare(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Return the golds once more, for charts whose axis is the proxy, or its first part."""
        proxy = next((key for key in row if key.startswith("eval/proxy/")), "")
        if proxy and not self.proxy:
            self.board.define_metric("gold_against_proxy/*", step_metric=proxy)
            self.proxy = proxy
        golds = {key: value for key, value in row.items() if key.startswith("eval/gold/")}
        return {f"gold_against_proxy/{key[10:]}": v for key, v in golds.items()} if proxy else {}

    def _send(self, iteration: int, row: Callable[[], Mapping[str, Any]]) -> None:
        if not self.failed and iteration >= self.next_step:
            self.attempt(
                lambda: self.board.log(
                    {"iteration": iteration, **row()}, step=iteration, commit=True
                )
            )

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


def _run_id(folder: Path) -> str:
    """Return the W&B id of a run folder; a resumed run finds it and continues its curves.

    A new run takes the id of WANDB_RUN_ID, as `wandb agent` sets it.
    """
    file = folder / "wandb_id"
    if not file.exists():
        run_id = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        file.write_text(run_id, encoding="utf-8")
    return file.read_text(encoding="utf-8")


def _choose(setting: Any, variable: str, automatic: Any) -> Any:
    """Return a setting, or None if W&B reads it from its variable, or what is automatic."""
    if setting is not None:
        return setting
    return None if os.environ.get(variable) else automatic


@component
class WandB:
    """Log to a project of Weights & Biases, and never ask for an account.

    Without an account, or when the server cannot be reached, the run is logged offline, to be sent
    later with `wandb sync`. A failure during a run is reported once, and training continues without
    W&B. A setting that is null is read from W&B's own environment variable, if that is set.
    """

    project: str | None = None
    """Name of the W&B project; null: WANDB_PROJECT, or grpo_guard."""
    entity: str | None = None
    """W&B user or team that owns the project; null: WANDB_ENTITY, or the account's default."""
    name: str | None = None
    """Name of the run; null: WANDB_NAME, or its arm and seed, such as "guard, seed 3"."""
    group: str | None = None
    """Group of runs that differ in the seed; null: WANDB_RUN_GROUP, or the sweep and the arm."""
    job_type: str | None = None
    """Kind of the run; null: WANDB_JOB_TYPE, or train."""
    tags: Sequence[str] | None = None
    """Tags of the run; null: WANDB_TAGS, or objective, reward, backbone, data and sweep."""
    notes: str | None = None
    """Description of the run; null: WANDB_NOTES, or the overrides of the command line."""
    timeout: Annotated[Positive, Advice("give seconds")] = 90.0
    """Seconds that W&B may take to connect, else the run goes offline, and again to finish."""

    @contextmanager
    def open(self, run: RunInfo) -> Iterator[Sink]:
        """Open a W&B run that is finished when the context exits; none if W&B is disabled."""
        # The library would also send its makers numbers about its own use.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        if wandb.setup().settings.mode == "disabled":
            yield SILENT
            return
        before = _run_id(run.folder)
        started = self._start(run)
        board = _Board(started, _next_step(started, before))
        board.fill(read_rows(run.folder, board.next_step, run.start))
        try:
            yield board
        finally:
            board.attempt(board.board.finish)

    def _start(self, run: RunInfo) -> Any:
        """Start W&B's own run in the mode of its settings if possible, else offline."""
        import wandb

        offline = wandb.setup().settings.mode in ("offline", "dryrun")
        if offline or not wandb.login(prompt=False, verify=False):
            return self._init(run, "offline")
        try:
            started = self._init(run, None)
        except wandb.errors.CommError as error:
            journal.warning(
                "Weights & Biases cannot be reached (%s); this run is logged offline",
                _one_line(error),
            )
            wandb.teardown()  # its process still has the run's id in use
            return self._init(run, "offline")
        print(f"Weights & Biases: {started.url}", file=sys.stderr)
        return started

    def _init(self, run: RunInfo, mode: Literal["offline"] | None) -> Any:
        import wandb

        settings = wandb.Settings(
            silent=True, console="off", init_timeout=self.timeout,
            finish_timeout=self.timeout, finish_timeout_raises=True,
        )  # fmt: skip
        names = name_run(run.config, run.folder.name)
        objective = {"objective": run.config.get("clipping", {}).get("name")}
        return wandb.init(
            project=_choose(self.project, "WANDB_PROJECT", "grpo_guard"), entity=self.entity,
            name=_choose(self.name, "WANDB_NAME", names.name),
            group=_choose(self.group, "WANDB_RUN_GROUP", names.group or None),
            job_type=_choose(self.job_type, "WANDB_JOB_TYPE", "train"),
            tags=_choose(self.tags, "WANDB_TAGS", names.tags),
            notes=_choose(self.notes, "WANDB_NOTES", names.notes or None),
            dir=_choose(None, "WANDB_DIR", run.folder), config={**objective, **run.config},
            mode=mode, settings=settings, id=_run_id(run.folder), resume="allow",
        )  # fmt: skip


def _next_step(started: Any, run_id: str) -> int:
    """Return the first iteration that W&B lacks: its server, or the files of earlier processes."""
    if started.offline:
        return last_step(Path(started.settings.wandb_dir), run_id) + 1
    return int(started.starting_step)
