"""What a run keeps: the state from which it resumes, and the checkpoints of what it trained.

A run folder has `state/<iteration>/` (torch.distributed.checkpoint; any number of processes can
read what any number wrote) and `checkpoints/<iteration>/` (diffusers). Both are written beside
their place and then renamed, so whatever stands there is whole. A state is sealed by the hashes of
its files (docs/adr/0016).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
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

from grpo_guard.lifecycle.state_reader import load_tensors
from grpo_guard.metrics import Metrics, finite_or_none
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.schema import ConfigError, PositiveInt, RunError, component, record, require

SEAL = "seal.json"
"""File of a state with the hashes of all its other files."""
NOTES = "notes.json"
"""File of a state with what is not a tensor: iterations, clip range, skipped updates."""

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
            self._save_state(iterations, take())

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

    def _save_state(self, iterations: int, snapshot: Snapshot) -> None:
        """Write a state. If that fails, warn and continue: the state before still stands."""
        self.close()
        self.ranks.barrier("checkpoint")
        final = self.folder / "state" / f"{iterations:06d}"
        notes = {**snapshot.notes, "iterations": iterations, "best": self.best}
        # Of several processes, none goes on alone: the others would wait for it.
        with tolerate_failure(iterations) if self.ranks.processes == 1 else nullcontext():
            finish = self._write(final.with_suffix(".partial"), snapshot.tensors)

            def seal() -> None:
                with tolerate_failure(iterations):
                    finish()
                    if self.ranks.is_first:
                        _seal(final, notes)
                        prune_states(final.parent, self.recipe.keep)

            self.writing = threading.Thread(target=seal, name="state")
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
            _put_in_place(partial, final)


@contextmanager
def tolerate_failure(iterations: int) -> Iterator[None]:
    """Warn that a state could not be written; that is not worth ending the run."""
    try:
        yield
    except RunError:
        raise
    except (OSError, RuntimeError, CheckpointException) as error:
        _log.warning(
            "the state after iteration %d was not saved (%s); the state before it stands",
            iterations,
            _one_line(error),
        )


def _seal(final: Path, notes: Mapping[str, Any]) -> None:
    """Write the notes and the hashes of all files, then put the state in its place."""
    partial = final.with_suffix(".partial")
    (partial / NOTES).write_text(json.dumps(notes), encoding="utf-8")
    (partial / SEAL).write_text(json.dumps(hash_files(partial)), encoding="utf-8")
    _put_in_place(partial, final)


def _put_in_place(partial: Path, final: Path) -> None:
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file but the seal, by name."""
    hashes = {}
    for path in sorted(path for path in folder.iterdir() if path.name != SEAL):
        with path.open("rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def prune_states(folder: Path, keep: int) -> None:
    """Remove all states but the newest `keep`."""
    for old in list_states(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)


def list_states(folder: Path) -> list[Path]:
    """List the states in a folder, newest first, whether they are whole or not."""
    return sorted((path for path in folder.glob("*") if path.name.isdigit()), reverse=True)


def choose_state(resume: str, run: Path) -> Path | None:
    """Return the state that the setting `resume` means for a run folder; None: start anew.

    Raises ConfigError if it names a state that is not whole.
    """
    if resume == "never":
        return None
    if resume == "auto":
        return find_newest_state(run)
    flaw = find_flaw(Path(resume))
    require(not flaw, f"resume={resume} is not whole ({flaw}); give another state")
    return Path(resume)


def find_newest_state(run: Path) -> Path | None:
    """Return the newest whole state of a run; warn of each newer one that is not whole."""
    for state in list_states(run / "state"):
        flaw = find_flaw(state)
        if not flaw:
            return state
        _log.warning("%s is not used: %s", state, flaw)
    return None


def is_finished(run: Path, iterations: int) -> bool:
    """Return whether a run has logged its last evaluation."""
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return any(line.startswith(f'{{"iteration": {iterations},') for line in lines[-1:])


def find_flaw(state: Path) -> str:
    """Return why a folder is not a whole state; empty if it is one."""
    try:
        sealed: dict[str, str] = dict(json.loads((state / SEAL).read_text(encoding="utf-8")))
        hashes = hash_files(state)
    except (OSError, ValueError, TypeError) as error:
        return f"it cannot be read ({_one_line(error)})"
    names = sealed.keys() | hashes.keys()
    wrong = sorted(name for name in names if sealed.get(name) != hashes.get(name))
    return f"{', '.join(wrong)} changed since it was written" if wrong else ""


def read_state(state: Path, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Read a state into tensors of the same names and shapes, in place; return its notes.

    The state may lack optimizer states of parameters that never had a gradient. Raises ConfigError
    if the state does not fit.
    """
    try:
        load_tensors(state, tensors)
        notes: dict[str, Any] = dict(json.loads((state / NOTES).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"resume={state} does not fit this run ({_one_line(error)});"
            " give a state of a run with these settings"
        ) from error
    return notes


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
