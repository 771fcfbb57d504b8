"""Read run folders, finished or still running."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from grpo_guard.report.damage import (
    UNREADABLE,
    find_packed,
    load_or_refuse,
    note_torn_lines,
    read_lines,
)
from grpo_guard.report.parts import read_histograms, read_prompt_scores, read_samples
from grpo_guard.report.runs import Row, Run, has_ended
from grpo_guard.report.settings import label_runs, variant_name
from grpo_guard.schema import ConfigError, require

NO_ITERATIONS = "what they logged is left out"


def read_runs(folders: Iterable[Path]) -> tuple[Run, ...]:
    """Read several run folders and give each run a label that tells it from the others.

    The first run is the reference. A folder that is named twice is read once.
    Raises ConfigError if a folder is not a run's or a part of it is damaged, or if there is none.
    """
    runs, left_out = read_readable_runs(folders)
    faults = [*left_out, *(damage for run in runs for damage in run.damages)]
    require(not faults, faults[0] if faults else "")
    return runs


def read_readable_runs(folders: Iterable[Path]) -> tuple[tuple[Run, ...], tuple[str, ...]]:
    """Read the folders that hold a run, and return why each of the others is left out.

    A run of which only a part is damaged is read without it: see `Run.damages`.
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
    """Read a run folder, finished or still running, without its damaged parts (`Run.damages`).

    Raises ConfigError if it is not a run's, or if its settings or all its numbers are damaged.
    """
    require(folder.is_dir(), f"{folder} is no folder; give a run folder")
    config = _read_config(folder / "config.yaml")
    damages: list[str] = []
    rows = _read_metrics(find_packed(folder / "metrics.jsonl"), damages)
    histograms = read_histograms(folder / "histograms.npz", rows, damages)
    prompt_scores = read_prompt_scores(find_packed(folder / "prompt_scores.jsonl"), rows, damages)
    samples = read_samples(folder / "samples", rows, damages)
    return Run(
        folder=folder,
        label=variant_name(config),
        config=config,
        rows=rows,
        histograms=histograms,
        samples=samples,
        prompt_scores=prompt_scores,
        damages=tuple(damages),
    )


def _read_config(path: Path) -> Mapping[str, Any]:
    require(path.is_file(), f"{path.parent} holds no config.yaml; give a run folder")
    config = load_or_refuse(path, lambda: yaml.safe_load(path.read_text(encoding="utf-8")))
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


def _read_metrics(path: Path, damages: list[str]) -> tuple[Row, ...]:
    """Return one row per iteration; lines that cannot be read are left out."""
    lines = load_or_refuse(path, lambda: read_lines(path))
    require(
        lines is not None,
        f"{path.parent} holds no metrics.jsonl; wait for its first iteration, or restore the file",
    )
    rows = [_parse_row(line) for line in lines or () if line.strip()]
    # a run that was killed and resumed can have logged an iteration twice: the last one counts
    latest = {row["iteration"]: row for row in rows if row}
    require(bool(latest), f"{path} holds no metrics yet; wait for the run's first iteration")
    kept = tuple(latest[iteration] for iteration in sorted(latest))
    note_torn_lines(path, list(map(bool, rows)), has_ended(kept), NO_ITERATIONS, damages)
    return kept


def _parse_row(line: str) -> dict[str, float]:
    """Return the finite numbers of a line; nothing if the line is torn."""
    try:
        row = json.loads(line)
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, int | float)}
    except UNREADABLE:
        return {}
    finite = {key: value for key, value in numbers.items() if math.isfinite(value)}
    return finite if "iteration" in finite else {}
