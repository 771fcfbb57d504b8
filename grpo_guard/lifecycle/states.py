"""The states of a run: which there are, whether they are whole, and what is in them.

A state is a folder `state/<iteration>/` of a run, sealed by the hashes of its files
(docs/adr/0016). `checkpoint.py` writes them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_guard.lifecycle.state_reader import load_tensors
from grpo_guard.messages import one_line
from grpo_guard.schema import ConfigError, require

SEAL = "seal.json"
"""File of a state with the hashes of all its other files."""
NOTES = "notes.json"
"""File of a state with what is not a tensor: iterations, clip range, skipped updates."""

_log = logging.getLogger(__name__)


def seal(state: Path, notes: Mapping[str, Any]) -> None:
    """Write the notes of a state, and the hashes of all its files."""
    (state / NOTES).write_text(json.dumps(notes), encoding="utf-8")
    (state / SEAL).write_text(json.dumps(hash_files(state)), encoding="utf-8")


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file but the seal, by name."""
    hashes = {}
    for path in sorted(path for path in folder.iterdir() if path.name != SEAL):
        with path.open("rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def prune_states(newest: Path, keep: int) -> None:
    """Keep a state and those before it, `keep` in all; remove all others.

    A later state is damaged: the run would have continued from it.
    """
    states = list_states(newest.parent)
    place = states.index(newest)
    for state in states[:place] + states[place + keep :]:
        shutil.rmtree(state, ignore_errors=True)


def list_states(folder: Path) -> list[Path]:
    """List the states in a folder, newest first, whether they are whole or not."""
    return sorted((path for path in folder.glob("*") if path.name.isdigit()), reverse=True)


def choose_state(resume: str, run: Path) -> Path | None:
    """Return the state that the setting `resume` means for a run folder; None: start anew.

    Raises ConfigError if it names a state that is not whole, or if no state of the run is: the run
    would begin anew, and lose its numbers.
    """
    if resume == "never":
        return None
    if resume == "auto":
        newest = find_newest_state(run)
        require(
            newest is not None or not list_states(run / "state"),
            f"output={run} has states, but none that is whole; restore one, or remove"
            f" {run / 'state'} to begin the run anew",
        )
        return newest
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


def find_flaw(state: Path) -> str:
    """Return why a folder is not a whole state; empty if it is one."""
    try:
        sealed: dict[str, str] = dict(json.loads((state / SEAL).read_text(encoding="utf-8")))
        hashes = hash_files(state)
    except (OSError, ValueError, TypeError) as error:
        return f"it cannot be read ({one_line(error)})"
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
            f"resume={state} does not fit this run ({one_line(error)});"
            " give a state of a run with these settings"
        ) from error
    return notes
