"""Writes what a run keeps: states from which it resumes, and checkpoints of what it trained.

A run folder has `state/<iteration>/` (torch.distributed.checkpoint; any number of processes can
read what any number wrote) and `checkpoints/<iteration>/` (diffusers). Both are written beside
their place and then renamed, so whatever stands there is whole. `states.py` reads states.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import async_save

from grpo_guard.lifecycle.states import prune_states, seal
from grpo_guard.messages import one_line
from grpo_guard.metrics import Metrics, finite_or_none
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.schema import PositiveInt, RunError, component, record

REPLACED = ".replaced_"
"""Beginning of the names of folders that wait to be removed."""

_log = logging.getLogger(__name__)
# A run of one process saves without a process group on purpose.
warnings.filterwarnings("ignore", "torch.distributed is disabled")


@record
class Snapshot:
    """The state of a run between two iterations."""

    tensors: Mapping[str, Any]
    """Nested mappings of tensors and numbers: weights, optimizer, moving average."""
    notes: Mapping[str, Any]
    """What else is needed to resume, as JSON can hold it."""


@component
class Checkpoints:
    """When a run saves its state, and when it exports what was trained.

    What was trained is also exported at the end.
    """

    every: PositiveInt
    """Iterations between two states from which the run can resume; positive."""
    keep: PositiveInt
    """How many of the newest states stay; positive."""
    export_every: PositiveInt
    """Iterations between two exports of what was trained, in checkpoints/; positive."""
    best: str | None
    """A metric such as eval/gold/exact: whenever it is higher than before, what was trained is
    exported as checkpoints/best. null: no best checkpoint."""
    asynchronous: bool
    """True: a state is written while the run goes on. False: the run waits for it."""
    push_to_hub: str | None = None
    """A repository of the Hugging Face Hub, USER/NAME, that gets the last checkpoint when the run
    is finished. null: nothing is uploaded."""


class CheckpointWriter:
    """Writes the states and checkpoints of a run into its folder.

    `export(folder)` writes what was trained. `describe(folder, iterations, evaluation)` writes the
    card of a checkpoint, with the evaluation of its weights or an empty one. `best` is the highest
    value so far of the metric that `Checkpoints.best` names, None before the first. `start` is the
    first iteration of this process: a process before it may have exported the weights of then.
    """

    def __init__(
        self,
        recipe: Checkpoints,
        folder: Path,
        ranks: Ranks,
        export: Callable[[Path], None],
        describe: Callable[[Path, int, Metrics], None],
        best: float | None,
        start: int,
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.ranks = ranks
        self.export = export
        self.describe = describe
        self.best = best
        self.exported = start
        self.writing = threading.Thread()

    def after_iteration(self, iterations: int, last: bool, take: Callable[[], Snapshot]) -> None:
        """Save what is due after so many iterations, or everything if the run stops here.

        The state is written last, so that a run which resumes from it has no export to make up for.
        """
        if last or iterations % self.recipe.export_every == 0:
            # These weights are evaluated when the next iteration begins; see `after_evaluation`.
            self._export(f"{iterations:06d}", iterations, {})
            self.exported = iterations
        if last or iterations % self.recipe.every == 0:
            self.save_state(iterations, take())

    def after_evaluation(self, iterations: int, metrics: Metrics) -> None:
        """Put an evaluation, the same on every process, on the card of the weights evaluated.

        Also export the best checkpoint if the evaluation beat it.
        """
        numbered = self.folder / "checkpoints" / f"{iterations:06d}"
        if metrics and iterations == self.exported and numbered.is_dir() and self.ranks.is_first:
            self.describe(numbered, iterations, metrics)
        metric = metrics.get(self.recipe.best or "")
        value = None if metric is None else finite_or_none(metric.value)
        if value is not None and (self.best is None or value > self.best):
            self.best = value
            self._export("best", iterations, metrics)

    def close(self) -> None:
        """Wait for the state that is being written."""
        if self.writing.ident is not None:
            self.writing.join()

    def save_state(self, iterations: int, snapshot: Snapshot) -> None:
        """Write a state. If that fails, warn and continue: the state before still stands."""
        self.close()
        self.ranks.barrier("checkpoint")
        final = self.folder / "state" / f"{iterations:06d}"
        partial = final.with_suffix(".partial")
        notes = {**snapshot.notes, "iterations": iterations, "best": self.best}
        # Of several processes, none goes on alone: the others would wait for it.
        with tolerate_failure(partial, iterations) if self.ranks.processes == 1 else nullcontext():
            finish = self._write(partial, snapshot.tensors)

            def complete() -> None:
                with tolerate_failure(partial, iterations):
                    finish()
                    if self.ranks.is_first:
                        seal(partial, notes)
                        put_in_place(partial, final)
                        prune_states(final, self.recipe.keep)

            self.writing = threading.Thread(target=complete, name="state")
            self.writing.start()
        if not self.recipe.asynchronous:
            self.close()

    def _write(self, partial: Path, tensors: Mapping[str, Any]) -> Callable[[], Any]:
        """Begin to write tensors; the result waits for the end."""
        if self.ranks.is_first:
            # Torch's writer would make a run folder that was removed, without the run's numbers.
            partial.parent.mkdir(exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
        self.ranks.barrier("checkpoint")
        # The tensors are in the host's memory by then. A writer that copies ahead would still open
        # a context on the first GPU, from the thread of every process.
        storage = FileSystemWriter(partial, per_thread_copy_ahead=0)
        pending: Any = async_save(dict(tensors), storage_writer=storage, process_group=self._group)
        return cast(Callable[[], Any], pending.result)

    @cached_property
    def _group(self) -> Any:
        """A process group of its own: it communicates while the run does too."""
        return dist.new_group(backend="gloo") if self.ranks.processes > 1 else None

    def _export(self, name: str, iterations: int, evaluation: Metrics) -> None:
        final = self.folder / "checkpoints" / name
        partial = final.with_suffix(".partial")
        if self.ranks.is_first:
            shutil.rmtree(partial, ignore_errors=True)
            # A run folder that was removed is not made again: it would lack the run's numbers.
            partial.parent.mkdir(exist_ok=True)
            partial.mkdir()
        self.export(partial)
        if self.ranks.is_first:
            self.describe(partial, iterations, evaluation)
            put_in_place(partial, final)


@contextmanager
def tolerate_failure(partial: Path, iterations: int) -> Iterator[None]:
    """Warn that a state could not be written; that is not worth ending the run.

    What was written of it is removed: the numbers of the run may need its room.
    """
    try:
        yield
    except RunError:
        raise
    except (OSError, RuntimeError, CheckpointException) as error:
        shutil.rmtree(partial, ignore_errors=True)
        _log.warning(
            "the state after iteration %d was not saved (%s); the state before it stands",
            iterations,
            one_line(find_cause(error)),
        )


def find_cause(error: BaseException) -> BaseException:
    """Return what the first process raised, of an error that torch has gathered from several."""
    if not isinstance(error, CheckpointException):
        return error
    cause, _ = next(iter(error.failures.values()))
    return cause


def put_in_place(partial: Path, final: Path) -> None:
    """Put a folder in the place of an older one, which somebody may be reading.

    The old one is moved away before it is removed: NFS keeps a folder as long as a file of it is
    open, and nothing could take its place.
    """
    if final.exists():
        away = tempfile.mkdtemp(prefix=REPLACED, dir=final.parent)
        os.replace(final, Path(away, final.name))
    os.replace(partial, final)
    for replaced in final.parent.glob(f"{REPLACED}*"):
        shutil.rmtree(replaced, ignore_errors=True)
