"""The run folder while a run writes it: logs, samples, states and checkpoints."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from grpo_guard.diagnostics.iteration import check_failures
from grpo_guard.diagnostics.memory import explain_shortage
from grpo_guard.ema import within
from grpo_guard.eval.alarm import OverOptimised, Watch, open_watch
from grpo_guard.lifecycle import model_card
from grpo_guard.lifecycle.checkpoint import CheckpointWriter
from grpo_guard.lifecycle.stop import Stop
from grpo_guard.logger import SILENT, RunInfo, Sink
from grpo_guard.metrics import Metric, Metrics
from grpo_guard.schema import RunError, require
from grpo_guard.session import Session, snapshot

SCORES = ("eval/gold/", "eval/proxy/")
"""Beginnings of the keys by which a best checkpoint is usually chosen."""
LOST = (
    errno.ENOENT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE,
    errno.EEXIST, errno.EISDIR, errno.ENOTDIR,
)  # fmt: skip
"""Errors of a folder that is gone, read-only or failing, or has a file in the place of a folder."""


class OpenRun:
    """The run folder while a run writes it: logs, samples, states and checkpoints."""

    def __init__(
        self, session: Session, log: Sink, writer: CheckpointWriter, watch: Watch, stop: Stop
    ) -> None:
        self.session = session
        self.log = log
        self.writer = writer
        self.watch = watch
        self.stop = stop

    def evaluate(self, iteration: int) -> dict[str, Metric]:
        """Evaluate the policy that enters an iteration; return nothing if none is due.

        Raises OverOptimised if the run ends here, after everything is logged and saved.
        """
        session = self.session
        with explain_shortage(session.ranks.device, "evaluation"):
            evaluation = session.evaluate(iteration)
        metrics = session.ranks.reduce(evaluation.metrics)
        require_measured(session.exp.checkpoint.best, metrics)
        metrics |= self.watch.observe(iteration, metrics)
        self.log.show(iteration, evaluation.pictures)
        check_failures(metrics, "eval/failed", session.exp.max_failed)
        self.writer.after_evaluation(iteration, metrics)
        if metrics and self._ends_early(iteration):
            self._end(iteration, metrics)
        return metrics

    def _ends_early(self, iteration: int) -> bool:
        exp = self.session.exp
        over_optimises = exp.eval.stop_on_over_optimisation and self.watch.raised
        return over_optimises and iteration < exp.iterations

    def _end(self, iteration: int, evaluation: dict[str, Metric]) -> None:
        """Log and save what a run keeps at its end, and end it before this iteration."""
        self.log.log(iteration, evaluation)
        self.writer.after_iteration(iteration, True, partial(snapshot, self.session))
        self.writer.after_evaluation(iteration, evaluation)
        raise OverOptimised

    def finish_iteration(self, session: Session, iteration: int, metrics: Metrics) -> None:
        """Log an iteration and save what is due; raises Stopped if the run was asked to stop."""
        exp = session.exp
        self.session = session
        # Numbers come before the state: a resume discards numbers without a state, not the reverse.
        self.log.log(iteration, metrics)
        stopping = session.ranks.any(self.stop.requested)
        last = stopping or iteration + 1 == exp.iterations
        self.writer.after_iteration(iteration + 1, last, partial(snapshot, session))
        self.stop.leave_if(stopping, iteration + 1, Path(exp.output), exp.resume)


def require_measured(best: str | None, evaluation: Metrics) -> None:
    """Raise ConfigError if an evaluation lacks the metric that chooses the best checkpoint."""
    scores = sorted(key for key in evaluation if key.startswith(SCORES))
    require(
        best is None or not evaluation or best in evaluation,
        f"checkpoint.best={best} is not measured by the evaluations; choose from"
        f" {', '.join(scores)}",
    )


@contextmanager
def open_run(session: Session, config: Mapping[str, Any]) -> Iterator[OpenRun]:
    """Open the run folder; `config` is the composed configuration. The first process writes."""
    exp = session.exp
    folder = Path(exp.output)
    info = RunInfo(
        folder=folder,
        config=config,
        iterations=exp.iterations,
        plan=exp.batch_sizes.describe(),
        start=session.start,
    )

    def export(place: Path) -> None:
        weights = within(session.averaged, session.learner.gather_weights)()
        if session.ranks.is_first:
            session.model.save(place, weights)

    describe = partial(model_card.write_card, config, folder)
    writer = CheckpointWriter(
        exp.checkpoint, folder, session.ranks, export, describe, session.best, session.start
    )
    watch = open_watch(exp.eval.alarm, folder, session.start, session.ranks)
    open_log = exp.logger.open(info) if session.ranks.is_first else nullcontext(SILENT)
    # A signal that is repeated must not cut off the last state, so Stop is left after the writer.
    with (
        report_lost_folder(folder),
        Stop() as stop,
        open_log as log,
        closing(writer),
        suppress(OverOptimised),
    ):
        if session.start and exp.resume != "auto":
            # The run that left this state may remove it: this run gets one of its own.
            writer.save_state(session.start, snapshot(session))
        yield OpenRun(session, log, writer, watch, stop)


@contextmanager
def report_lost_folder(folder: Path) -> Iterator[None]:
    """Raise RunError instead of OSError if a run folder, or a part of it, cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in LOST or not str(error.filename).startswith(str(folder)):
            raise
        raise RunError(
            f"output={folder} cannot be written any more ({error.strerror}: {error.filename});"
            " restore it; the same command with resume=auto continues from its newest state"
        ) from error
