"""Read run folders, finished or still running."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy import ndarray

from grpo_guard.histogram_files import load_histograms
from grpo_guard.report.notation import join_notes
from grpo_guard.report.runs import Histograms, Run, Samples
from grpo_guard.report.settings import label_runs, variant_name
from grpo_guard.schema import ConfigError, require

UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    EOFError,
    zlib.error,
    yaml.YAMLError,
)
"""What reading a damaged file of a run raises."""


def read_runs(folders: Iterable[Path]) -> tuple[Run, ...]:
    """Read several run folders and give each run a label that tells it from the others.

    The first run is the reference. A folder that is named twice is read once.
    Raises ConfigError if a folder is not a run's, or if there is none.
    """
    runs, left_out = read_readable_runs(folders)
    require(not left_out, left_out[0] if left_out else "")
    return runs


def read_readable_runs(folders: Iterable[Path]) -> tuple[tuple[Run, ...], tuple[str, ...]]:
    """Read the folders that hold a run, and return why each of the others is left out.

    Raises ConfigError if a folder does not exist, or if no folder holds a run.
    """
    runs: list[Run] = []
    left_out: list[str] = []
    for folder in dict.fromkeys(Path(f).resolve() for f in folders):
        require(folder.is_dir(), f"{folder} is no folder; give a run folder")
        try:
            runs.append(read_run(folder))
        except ConfigError as error:
            left_out.append(str(error))
    require(bool(runs), left_out[0] if left_out else "no run folder given; name one or more")
    labels = label_runs([run.config for run in runs], [run.folder.name for run in runs])
    named = (replace(run, label=label) for run, label in zip(runs, labels, strict=True))
    return tuple(named), tuple(left_out)


def read_run(folder: Path) -> Run:
    """Read a run folder, finished or still running; raises ConfigError if it is not a run's."""
    require(folder.is_dir(), f"{folder} is no folder; give a run folder")
    config = _read_config(folder / "config.yaml")
    rows, torn = _read_metrics(folder / "metrics.jsonl")
    return Run(
        folder=folder,
        label=variant_name(config),
        config=config,
        rows=rows,
        torn=torn,
        histograms=_read_histograms(folder / "histograms.npz"),
        samples=_read_samples(folder / "samples"),
        prompt_scores=_read_prompt_scores(folder / "prompt_scores.jsonl"),
    )


def _read_config(path: Path) -> Mapping[str, Any]:
    require(path.is_file(), f"{path.parent} holds no config.yaml; give a run folder")
    config = _load(path, lambda: yaml.safe_load(path.read_text(encoding="utf-8")))
    require(
        isinstance(config, dict) and isinstance(config.get("clipping"), dict),
        f"{path} is not the configuration of a run: clipping is missing; give a run folder",
    )
    require(
        "name" in config["clipping"],
        f"{path} was written by an earlier version of grpo_guard (it has no clipping.name);"
        " compare it with that version",
    )
    return dict(config)


def _read_metrics(path: Path) -> tuple[tuple[Mapping[str, float], ...], int]:
    """Return one row per iteration, and how many lines could not be read."""
    lines = _read_lines(path)
    require(
        lines is not None, f"{path.parent} holds no metrics.jsonl yet; wait for its first iteration"
    )
    rows = [_parse_row(line) for line in lines or () if line.strip()]
    # a run that was killed and resumed can have logged an iteration twice: the last one counts
    latest = {row["iteration"]: row for row in rows if row}
    require(bool(latest), f"{path} holds no metrics yet; wait for the run's first iteration")
    return tuple(latest[iteration] for iteration in sorted(latest)), rows.count({})


def _read_lines(path: Path) -> list[str] | None:
    """Return the lines of a file, or of the compressed file beside it; None if there is neither."""
    packed = path.with_name(f"{path.name}.gz")
    if path.is_file():
        data = path.read_bytes()
    elif packed.is_file():
        data = _load(packed, lambda: gzip.decompress(packed.read_bytes()))
    else:
        return None
    return data.decode("utf-8", errors="replace").splitlines()


def _read_prompt_scores(path: Path) -> Mapping[int, Mapping[str, ndarray]]:
    """Return the scores of each evaluation; lines that are torn are left out."""
    scores: dict[int, Mapping[str, ndarray]] = {}
    for line in _read_lines(path) or ():
        try:
            row = json.loads(line)
            values = {k: np.array(v, dtype=float) for k, v in row.items() if isinstance(v, list)}
            scores[int(row["iteration"])] = values
        except UNREADABLE:
            continue
    return scores


def _parse_row(line: str) -> dict[str, float]:
    """Return the finite numbers of a line; nothing if the line is torn."""
    try:
        row = json.loads(line)
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, int | float)}
    except UNREADABLE:
        return {}
    finite = {key: value for key, value in numbers.items() if math.isfinite(value)}
    return finite if "iteration" in finite else {}


def _read_histograms(path: Path) -> Histograms | None:
    if not path.is_file():
        return None
    arrays = _load(path, lambda: load_histograms(path))
    counts = {key: value for key, value in arrays.items() if "/hist/" in key}
    if not counts:
        return None
    return Histograms(iteration=arrays["iteration"], edges=arrays["edges"], counts=counts)


def _read_samples(folder: Path) -> Samples | None:
    grids = {int(path.stem): path for path in sorted(folder.glob("*.png")) if path.stem.isdigit()}
    captions = _read_lines(folder / "captions.txt")
    if not grids or not captions:
        return None
    files = {iteration: path.with_suffix(".json") for iteration, path in grids.items()}
    pictures = {
        iteration: _load(file, partial(_read_pictures, file))
        for iteration, file in files.items()
        if file.is_file()
    }
    return Samples(
        grids=grids,
        captions=tuple(captions),
        notes={iteration: notes for iteration, (notes, _) in pictures.items()},
        scores={iteration: scores for iteration, (_, scores) in pictures.items()},
    )


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


def _load(path: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except UNREADABLE as error:
        words = " ".join(str(error).split())
        raise ConfigError(
            f"{path} cannot be read ({words}); restore the file, or leave this run out"
        ) from error
