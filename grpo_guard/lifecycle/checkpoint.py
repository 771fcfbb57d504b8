"""What a run keeps: the state it goes on from, and what was trained.

A run folder has `state/<iteration>/` (torch.distributed.checkpoint; whatever the processes that wrote it, it can be
read by others) and `checkpoints/<iteration>/` (diffusers). Both are written beside their place and then renamed, so
that what stands there is whole; a state is sealed by the hashes of its files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from grpo_guard.metrics import Metrics
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.types import ConfigError, RunError, component, record, require

SEAL = "seal.json"
NOTES = "notes.json"
log = logging.getLogger(__name__)
warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a single process is no mistake


@record
class Snapshot:
    """What a state is made of: nested mappings of tensors and numbers, and `notes` for JSON."""

    tensors: Mapping[str, Any]
    notes: Mapping[str, Any]


@component
class Checkpoints:
    """The state of a run every `every` iterations, the newest `keep` of them; what was trained every `export_every`.

    What was trained is written at the end too and, where `best` names a metric such as eval/gold/exact, whenever that
    is higher than before, as checkpoints/best. With `asynchronous`, a state is written while the run goes on.
    """

    every: int
    keep: int
    export_every: int
    best: str | None
    asynchronous: bool

    def __post_init__(self) -> None:
        for key in ("every", "keep", "export_every"):
            require(getattr(self, key) > 0, f"{key}={getattr(self, key)} is not positive")


class CheckpointWriter:
    """Keeps a run in its folder; `export` writes what was trained, after some iterations, into a folder it is given.

    `best` is the highest value so far of the metric that the recipe names, None before there was one.
    """

    def __init__(
        self,
        recipe: Checkpoints,
        folder: Path,
        ranks: Ranks,
        export: Callable[[Path, int], None],
        best: float | None,
    ) -> None:
        self.recipe, self.folder, self.ranks, self.export = recipe, folder, ranks, export
        self.best, self.writing = best, threading.Thread()

    def after_iteration(self, iterations: int, last: bool, kept: Callable[[], Snapshot]) -> None:
        """So many iterations are finished: keep what is due; all of it where they are the last for now.

        The state comes last, so that a run which goes on from it has nothing to make up for.
        """
        if last or iterations % self.recipe.export_every == 0:
            self._export(f"{iterations:06d}", iterations)
        if last or iterations % self.recipe.every == 0:
            self._keep(iterations, kept())

    def after_evaluation(self, iterations: int, metrics: Metrics) -> None:
        """An evaluation of the policy after so many iterations, the same on every process."""
        metric = metrics.get(self.recipe.best or "")
        if metric is not None and (self.best is None or metric.value > self.best):
            self.best = metric.value
            self._export("best", iterations)

    def close(self) -> None:
        """Wait for the state that is being written."""
        if self.writing.ident is not None:
            self.writing.join()

    def _keep(self, iterations: int, kept: Snapshot) -> None:
        """Write a state; where that fails, say so and go on: the one before still stands."""
        self.close()
        self.ranks.barrier("checkpoint")
        final = self.folder / "state" / f"{iterations:06d}"
        notes = {**kept.notes, "iterations": iterations, "best": self.best}
        with tolerate_failure(iterations):
            finish = self._write(final.with_suffix(".partial"), kept.tensors)

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
            shutil.rmtree(partial, ignore_errors=True)
        self.ranks.barrier("checkpoint")
        begun: Any = async_save(dict(tensors), checkpoint_id=partial, process_group=self._group)
        return cast(Callable[[], Any], begun.result)

    @cached_property
    def _group(self) -> Any:
        """A process group of its own, because it is used while the run goes on."""
        return dist.new_group(backend="gloo") if self.ranks.processes > 1 else None

    def _export(self, name: str, iterations: int) -> None:
        final = self.folder / "checkpoints" / name
        partial = final.with_suffix(".partial")
        if self.ranks.is_first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.export(partial, iterations)
        if self.ranks.is_first:
            _replace(partial, final)


@contextmanager
def tolerate_failure(iterations: int) -> Iterator[None]:
    """A state that cannot be written is told of, not worth the run."""
    try:
        yield
    except RunError:
        raise
    except (OSError, RuntimeError, CheckpointException) as error:
        log.warning(
            "the state after iteration %d is not kept (%s); the one before stands",
            iterations,
            _line(error),
        )


def _seal(final: Path, notes: Mapping[str, Any]) -> None:
    """Write the notes and the hashes of all files of a partial folder, then put it in its place."""
    partial = final.with_suffix(".partial")
    (partial / NOTES).write_text(json.dumps(notes), encoding="utf-8")
    (partial / SEAL).write_text(json.dumps(hash_files(partial)), encoding="utf-8")
    _replace(partial, final)


def _replace(partial: Path, final: Path) -> None:
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the seal."""
    found = {}
    for file in sorted(path for path in folder.iterdir() if path.name != SEAL):
        with file.open("rb") as opened:
            found[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return found


def prune_states(folder: Path, keep: int) -> None:
    """Remove all states but the newest."""
    for old in list_states(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)


def list_states(folder: Path) -> list[Path]:
    """The states in a folder, newest first, whatever is in them."""
    return sorted((path for path in folder.glob("*") if path.name.isdigit()), reverse=True)


def find_newest_state(run: Path) -> Path | None:
    """The newest whole state of a run; those that are not are named in a line each."""
    for state in list_states(run / "state"):
        reason = find_flaw(state)
        if not reason:
            return state
        log.warning("%s is not used: %s", state, reason)
    return None


def is_finished(run: Path, iterations: int) -> bool:
    """Whether a run has logged its last evaluation."""
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return any(line.startswith(f'{{"iteration": {iterations},') for line in lines[-1:])


def find_flaw(state: Path) -> str:
    """Why a folder is no whole state; empty where it is one."""
    try:
        sealed = json.loads((state / SEAL).read_text(encoding="utf-8"))
        found = hash_files(state)
    except (OSError, ValueError) as error:
        return f"it cannot be read ({_line(error)})"
    wrong = sorted(
        name for name in sealed.keys() | found.keys() if sealed.get(name) != found.get(name)
    )
    return f"{', '.join(wrong)} changed since it was written" if wrong else ""


def read(state: Path, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Read a state into tensors of the same names and shapes, in place; returns its notes.

    Optimizer states of parameters that never had a gradient may be absent. Raises ConfigError where it does not fit.
    """
    try:
        load(
            dict(tensors), checkpoint_id=state, planner=DefaultLoadPlanner(allow_partial_load=True)
        )
        notes: dict[str, Any] = json.loads((state / NOTES).read_text(encoding="utf-8"))
    except (
        OSError,
        ValueError,
        RuntimeError,
        pickle.UnpicklingError,
        CheckpointException,
    ) as error:
        raise ConfigError(
            f"resume={state} does not fit this run ({_line(error)}); give a state of it"
        ) from error
    return notes


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
