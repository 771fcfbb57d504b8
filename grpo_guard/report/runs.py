"""Read run folders, finished or still running."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float, Int
from numpy import ndarray

from grpo_guard.report.notation import join_notes
from grpo_guard.report.settings import label_runs, variant_name
from grpo_guard.schema import ConfigError, record, require


@record
class Histograms:
    """Histograms of log-ratios per iteration."""

    iteration: Int[ndarray, " N"]
    """The iterations that logged histograms."""
    edges: Float[ndarray, " K1"]
    """Edges of the K bins in clip ranges of the run; the outer bins are open."""
    counts: Mapping[str, Int[ndarray, "N K"]]
    """Counts of rows by metric key, such as "ratio_raw/hist/03"."""


@record
class Samples:
    """Grids of sample pictures. All show the same prompts, drawn from the same noise."""

    grids: Mapping[int, Path]
    """Picture files by iteration."""
    captions: tuple[str, ...]
    """The prompts, in the order of the grid."""
    notes: Mapping[int, tuple[str, ...]]
    """What rewards noted on each picture, by iteration; iterations without notes are missing."""


@record
class Run:
    """A run folder that has been read."""

    folder: Path
    """The run folder."""
    label: str
    """Name of the run on the page."""
    config: Mapping[str, Any]
    """The composed configuration."""
    rows: tuple[Mapping[str, float], ...]
    """The finite metrics of each logged iteration, in order."""
    torn: int
    """Number of lines of metrics.jsonl that could not be read."""
    histograms: Histograms | None
    """Histograms of log-ratios; None if the folder has none."""
    samples: Samples | None
    """Sample pictures; None if the folder has none."""

    def keys(self, prefix: str) -> tuple[str, ...]:
        """Return all metric keys that begin with the prefix, sorted."""
        return tuple(sorted({key for row in self.rows for key in row if key.startswith(prefix)}))

    def series(self, key: str) -> tuple[Int[ndarray, " N"], Float[ndarray, " N"]]:
        """Return the iterations that logged a metric, and its values."""
        rows = [row for row in self.rows if key in row]
        iterations = np.array([int(row["iteration"]) for row in rows], dtype=int)
        return iterations, np.array([row[key] for row in rows], dtype=float)

    def setting(self, key: str) -> Any:
        """Return the setting under a dotted key; raises ConfigError if there is none."""
        value: Any = self.config
        for part in key.split("."):
            require(
                isinstance(value, Mapping) and part in value,
                f"{self.folder / 'config.yaml'} has no {key}",
            )
            value = value[part]
        return value

    def seconds(self) -> dict[str, float]:
        """Return the seconds spent in each part of the run, such as "rollout" or "eval"."""
        keys = [key for key in self.keys("time/") if key != "time/total"]
        return {key.removeprefix("time/"): float(self.series(key)[1].sum()) for key in keys}

    @property
    def iterations(self) -> int:
        """Number of iterations that have trained."""
        return sum("images" in row for row in self.rows)

    @property
    def variant(self) -> str:
        """Name of the clipping variant, such as "guard"."""
        return variant_name(self.config)

    @property
    def ratio(self) -> str:
        """The log-ratio that the run optimises, such as "raw" or "norm"; "" if it has none."""
        target = self.config["clipping"].get("ratio", {}).get("_target_", "")
        return str(target).rpartition(".")[2].removeprefix("log_ratio_")


def read_runs(folders: Iterable[Path]) -> tuple[Run, ...]:
    """Read several run folders and give each run a label that tells it from the others.

    The first run is the reference. A folder that is named twice is read once.
    Raises ConfigError if a folder is not a run's, or if there is none.
    """
    runs = [read_run(folder) for folder in dict.fromkeys(Path(f).resolve() for f in folders)]
    require(bool(runs), "no run folder given; name one or more")
    labels = label_runs([run.config for run in runs], [run.folder.name for run in runs])
    return tuple(replace(run, label=label) for run, label in zip(runs, labels, strict=True))


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
    )


def _read_config(path: Path) -> Mapping[str, Any]:
    require(path.is_file(), f"{path.parent} holds no config.yaml; give a run folder")
    config = _load(path, lambda: yaml.safe_load(path.read_text(encoding="utf-8")))
    require(
        isinstance(config, dict) and isinstance(config.get("clipping"), dict),
        f"{path} is not the configuration of a run: clipping is missing",
    )
    require(
        "name" in config["clipping"],
        f"{path} was written by an earlier version of grpo_guard (it has no clipping.name);"
        " compare it with that version",
    )
    return dict(config)


def _read_metrics(path: Path) -> tuple[tuple[Mapping[str, float], ...], int]:
    """Return one row per iteration, and how many lines could not be read."""
    require(
        path.is_file(), f"{path.parent} holds no metrics.jsonl yet; wait for its first iteration"
    )
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [_parse_row(line) for line in lines if line.strip()]
    # a run that was killed and resumed can have logged an iteration twice: the last one counts
    latest = {row["iteration"]: row for row in rows if row}
    require(bool(latest), f"{path} holds no metrics yet; wait for the run's first iteration")
    return tuple(latest[iteration] for iteration in sorted(latest)), rows.count({})


def _parse_row(line: str) -> dict[str, float]:
    """Return the finite numbers of a line; nothing if the line is torn."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    if not isinstance(row, dict) or "iteration" not in row:
        return {}
    return {k: float(v) for k, v in row.items() if isinstance(v, int | float) and math.isfinite(v)}


def _read_histograms(path: Path) -> Histograms | None:
    if not path.is_file():
        return None
    arrays = _load(path, lambda: _read_arrays(path))
    counts = {key: value for key, value in arrays.items() if "/hist/" in key}
    if not counts:
        return None
    return Histograms(iteration=arrays["iteration"], edges=arrays["edges"], counts=counts)


def _read_arrays(path: Path) -> dict[str, ndarray]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def _read_samples(folder: Path) -> Samples | None:
    grids = {int(path.stem): path for path in sorted(folder.glob("*.png")) if path.stem.isdigit()}
    captions = folder / "captions.txt"
    if not grids or not captions.is_file():
        return None
    files = {iteration: path.with_suffix(".json") for iteration, path in grids.items()}
    notes = {
        iteration: _load(file, partial(_read_notes, file))
        for iteration, file in files.items()
        if file.is_file()
    }
    return Samples(
        grids=grids,
        captions=tuple(captions.read_text(encoding="utf-8").splitlines()),
        notes=notes,
    )


def _read_notes(path: Path) -> tuple[str, ...]:
    """Return the notes on each picture as text."""
    pictures = json.loads(path.read_text(encoding="utf-8"))
    return tuple(join_notes(picture["notes"]) for picture in pictures)


def _load(path: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
