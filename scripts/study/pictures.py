"""What is wrong with the pictures that the runs of the study keep."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from grpo_guard.report.arms import Arm
from grpo_guard.report.notation import count_of
from grpo_guard.report.runs import Run

PICTURES = 16
"""Pictures of an evaluation that a run keeps."""
FAULTS = {
    "things that are too many": r"(?P<found>\d+) instead of (?P<asked>\d+)|things? too many",
    "things that are missing": r"(?P<found>\d+) instead of (?P<asked>\d+)|^no ",
    "things in a wrong place": r" is not (left|right|above|below)",
    "words that are not written": r" is not written",
}
"""Patterns of the notes of what is wrong with a picture, by their name in the table."""


def describe_faults(arms: Mapping[str, Arm], end: int, which: str = "") -> Iterator[str]:
    """Return what is wrong with the pictures before training and after, as a table.

    The arms are given by the name that the table shows; `which` says which ones they are.
    """
    before = [count_faults(run, 0) for arm in arms.values() for run in arm.runs]
    after = [[count_faults(run, end) for run in arm.runs] for arm in arms.values()]
    kept = sum(counts is not None for counts in before)
    if not kept:
        return
    yield ""
    yield (
        f"What is wrong with a picture{which}, on average over the {PICTURES} held-out captions"
        f" whose pictures are kept, in {count_of(kept, 'run', 'runs')}:"
    )
    yield ""
    yield "| what | before training | " + " | ".join(arms) + " |"
    yield "|---|---|" + "---|" * len(arms)
    for name in FAULTS:
        cells = [_mean_count(name, counts) for counts in (before, *after)]
        yield f"| {name} | " + " | ".join(cells) + " |"


def count_faults(run: Run, iteration: int) -> dict[str, float] | None:
    """Return the faults of each kind per picture; None if the pictures are not kept."""
    file = run.folder / "samples" / f"{iteration:06d}.json"
    if not file.is_file():
        return None
    pictures = json.loads(file.read_text(encoding="utf-8"))
    notes = [note for picture in pictures for note in picture["notes"]["eval/gold/world"]]
    return {name: sum(_is_fault(note, name) for note in notes) / len(pictures) for name in FAULTS}


def _mean_count(name: str, runs: Sequence[Mapping[str, float] | None]) -> str:
    values = [counts[name] for counts in runs if counts is not None]
    return f"{np.mean(values):.2f}" if values else "-"


def _is_fault(note: str, name: str) -> bool:
    match = re.search(FAULTS[name], note)
    if match is None:
        return False
    counts = match.groupdict()
    if counts.get("found") is None:
        return True
    is_more = int(counts["found"]) > int(counts["asked"])
    return is_more == (name == "things that are too many")
