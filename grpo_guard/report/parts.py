"""Reads the parts of a run folder that a run can be compared without, and notes what is damaged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy import ndarray

from grpo_guard.histogram_files import load_histograms
from grpo_guard.report.damage import UNREADABLE, load_or_note, note_torn_lines, read_lines
from grpo_guard.report.notation import count_of, join_notes
from grpo_guard.report.runs import Histograms, Row, Samples, has_ended

NO_PROMPTS = "intervals of its scores are from standard errors instead of the scores of prompts"
NO_HISTOGRAMS = "the page lacks its histograms"
NO_MARKS = "the page lacks the scores and notes of these pictures"
NO_PICTURES = "the page lacks these pictures"
PNG_END = b"\0\0\0\0IEND\xaeB\x60\x82"
"""The last bytes of a PNG file that is whole."""
FEW = 3
"""Files that a line names one by one."""


def read_histograms(path: Path, rows: Sequence[Row], damages: list[str]) -> Histograms | None:
    """Return the histograms; None if there are none, or if the file is damaged."""
    if not path.is_file():
        # While a run goes on, its newest histograms are in a folder; older runs measured no ratios.
        is_packed = has_ended(rows) and not path.with_suffix("").is_dir()
        if is_packed and any(key.startswith("ratio_") for key in rows[0]):
            damages.append(f"{path} is missing: {NO_HISTOGRAMS}; restore the file")
        return None
    nothing: dict[str, ndarray] = {}
    arrays = load_or_note(
        path, lambda: load_histograms(path), NO_HISTOGRAMS, damages, default=nothing
    )
    counts = {key: value for key, value in arrays.items() if "/hist/" in key}
    if not counts:
        return None
    return Histograms(iteration=arrays["iteration"], edges=arrays["edges"], counts=counts)


def read_prompt_scores(
    path: Path, rows: Sequence[Row], damages: list[str]
) -> Mapping[int, Mapping[str, ndarray]]:
    """Return the scores of each evaluation; lines that are torn are left out.

    The file holds a line for every evaluation of `metrics.jsonl`, if it is there at all.
    """
    before = len(damages)
    lines = load_or_note(path, lambda: read_lines(path), NO_PROMPTS, damages, default=None)
    if lines is None:
        return {}
    parsed = [_parse_scores(line) for line in lines if line.strip()]
    note_torn_lines(path, [bool(part) for part in parsed], has_ended(rows), NO_PROMPTS, damages)
    scores = {iteration: values for part in parsed for iteration, values in part.items()}
    missing = _evaluations(rows) - scores.keys()
    if missing and len(damages) == before:
        names = _name_few([str(iteration) for iteration in sorted(missing)])
        damages.append(f"{path} lacks iteration {names}: {NO_PROMPTS}; restore the file")
    return scores


def _parse_scores(line: str) -> dict[int, Mapping[str, ndarray]]:
    """Return the scores of an evaluation by its iteration; nothing if the line is torn."""
    try:
        row = json.loads(line)
        values = {k: np.array(v, dtype=float) for k, v in row.items() if isinstance(v, list)}
        return {int(row["iteration"]): values}
    except UNREADABLE:
        return {}


def _evaluations(rows: Sequence[Row]) -> set[int]:
    """Return the iterations at which held-out pictures were scored."""
    return {
        int(row["iteration"])
        for row in rows
        if any(key.startswith(("eval/gold/", "eval/proxy/")) for key in row)
    }


def read_samples(folder: Path, rows: Sequence[Row], damages: list[str]) -> Samples | None:
    """Return the sample pictures; None if there are none, or if their captions are missing.

    The newest pictures of a run that has not ended may be half written, which is no damage.
    """
    grids, files = _number_files(folder, "png"), _number_files(folder, "json")
    captions = folder / "captions.txt"
    newest = max(grids, default=0)
    written = {i for i in grids.keys() | files.keys() if i < newest or has_ended(rows)}
    if not grids or not (written or captions.is_file()):
        return None
    _note_missing(folder, written & (files.keys() - grids.keys()), "png", NO_PICTURES, damages)
    if files:
        _note_missing(folder, written & (grids.keys() - files.keys()), "json", NO_MARKS, damages)
    whole = {iteration: path for iteration, path in grids.items() if _is_whole(path)}
    for iteration in sorted(written & (grids.keys() - whole.keys())):
        damages.append(f"{grids[iteration]} is cut off: {NO_PICTURES}; restore the file")
    pictures = {
        iteration: load_or_note(
            file, partial(_read_pictures, file), NO_MARKS, damages, default=None
        )
        for iteration, file in files.items()
    }
    texts = load_or_note(
        captions, lambda: _read_captions(captions), NO_PICTURES, damages, default=None
    )
    if not (whole and texts):
        return None
    return Samples(
        grids=whole,
        captions=tuple(texts),
        notes={iteration: picture[0] for iteration, picture in pictures.items() if picture},
        scores={iteration: picture[1] for iteration, picture in pictures.items() if picture},
    )


def _number_files(folder: Path, ending: str) -> dict[int, Path]:
    """Return the files of an ending whose names are iterations."""
    paths = sorted(folder.glob(f"*.{ending}"))
    return {int(path.stem): path for path in paths if path.stem.isdecimal()}


def _note_missing(
    folder: Path, iterations: Iterable[int], ending: str, loss: str, damages: list[str]
) -> None:
    names = [f"{iteration:06d}.{ending}" for iteration in sorted(iterations)]
    if names:
        damages.append(f"{folder} lacks {_name_few(names)}: {loss}; restore what is missing")


def _name_few(names: Sequence[str]) -> str:
    """Write some names, and how many more there are."""
    more = len(names) - FEW
    return ", ".join(names[:FEW]) + (
        f" and {count_of(more, 'other', 'others')}" if more > 0 else ""
    )


def _is_whole(path: Path) -> bool:
    """Return whether a PNG file has its end; pictures that are cut off, as by a full disk, lack it.

    It reads a few bytes: a page that is written every minute must not read every picture again.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - len(PNG_END)))
            return file.read() == PNG_END
    except OSError:
        return False


def _read_captions(path: Path) -> list[str]:
    """Return the prompts; raises ValueError without any."""
    captions = read_lines(path)
    if not captions:
        raise ValueError("it is missing or empty")
    return captions


def _read_pictures(path: Path) -> tuple[tuple[str, ...], tuple[Mapping[str, float], ...]]:
    """Return the notes on each picture as text, and its scores without those that are missing."""
    pictures = json.loads(path.read_text(encoding="utf-8"))
    notes = tuple(
        join_notes({name.rpartition("/")[2]: lines for name, lines in picture["notes"].items()})
        for picture in pictures
    )
    scores = tuple(
        {key: float(value) for key, value in picture.get("scores", {}).items() if value is not None}
        for picture in pictures
    )
    return notes, scores
