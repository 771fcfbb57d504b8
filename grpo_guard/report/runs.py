"""Reads run folders: what each run was told, what it measured, what it drew, and what to call it."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float, Int
from numpy import ndarray

from grpo_guard.types import ConfigError, record, require

OBJECTIVES = {
    ("raw", "uniform"): "vanilla",
    ("raw", "std"): "temp_reweight",
    ("mean", "uniform"): "mean_revised",
    ("norm", "uniform"): "rationorm",
    ("norm", "inverse_dt"): "guard",
    ("norm_batch", "inverse_dt"): "guard_upstream",
    ("velocity", "uniform"): "guard_velocity",
}
"""The rows of GRPO-Guard's Table 2 by (ratio, weight)."""

IMMATERIAL = ("output", "logger", "strategy", "checkpoint_every")
"""Settings that change no result and so tell no runs apart."""


@record
class Histograms:
    """Counts of log-ratios per iteration; `edges` in clip ranges of the run, keys as "ratio_raw/hist/03"."""

    iteration: Int[ndarray, " N"]
    edges: Float[ndarray, " K1"]
    counts: Mapping[str, Int[ndarray, "N K"]]


@record
class Samples:
    """Grids of pictures by iteration, of the same prompts and noise every time, and what rewards said of each picture.

    Runs of before that was written down have no `notes`.
    """

    grids: Mapping[int, Path]
    captions: tuple[str, ...]
    notes: Mapping[int, tuple[str, ...]]


@record
class Run:
    """A run folder as read; `rows` by iteration hold what is finite, `torn` counts the lines that could not be read."""

    folder: Path
    label: str
    config: Mapping[str, Any]
    rows: tuple[Mapping[str, float], ...]
    torn: int
    histograms: Histograms | None
    samples: Samples | None

    def keys(self, prefix: str) -> tuple[str, ...]:
        """All keys that begin so, sorted."""
        return tuple(sorted({key for row in self.rows for key in row if key.startswith(prefix)}))

    def series(self, key: str) -> tuple[Int[ndarray, " N"], Float[ndarray, " N"]]:
        """The iterations at which a number was measured, and the number."""
        found = [(int(row["iteration"]), row[key]) for row in self.rows if key in row]
        return np.array([i for i, _ in found], dtype=int), np.array(
            [v for _, v in found], dtype=float
        )

    def setting(self, key: str) -> Any:
        """A dotted key of the configuration; raises ConfigError where there is none."""
        value: Any = self.config
        for part in key.split("."):
            require(
                isinstance(value, Mapping) and part in value,
                f"{self.folder / 'config.yaml'} has no {key}",
            )
            value = value[part]
        return value

    @property
    def iterations(self) -> int:
        """How many iterations trained."""
        return sum("images" in row for row in self.rows)

    @property
    def ratio(self) -> str:
        """The log-ratio that the run optimises: raw, mean, norm, velocity, or "" where it has none."""
        return _tail(self.config, "ratio").removeprefix("log_ratio_")

    @property
    def objective(self) -> str:
        """The objective's name in Table 2, or what it is made of."""
        return objective(self.config)


def gather(folders: Iterable[Path]) -> tuple[Run, ...]:
    """Read several runs, the first being the reference, and label each by what tells it from the others."""
    found = [read(folder) for folder in dict.fromkeys(Path(f).resolve() for f in folders)]
    require(bool(found), "no run folder given; name one or more")
    names = labels([run.config for run in found], [run.folder.name for run in found])
    return tuple(replace(run, label=name) for run, name in zip(found, names, strict=True))


def read(folder: Path) -> Run:
    """Read a run folder, finished or running; raises ConfigError where it is none."""
    require(folder.is_dir(), f"{folder} is no folder; give a run folder")
    config = _config(folder / "config.yaml")
    rows, torn = _rows(folder / "metrics.jsonl")
    return Run(
        folder=folder,
        label=objective(config),
        config=config,
        rows=rows,
        torn=torn,
        histograms=_histograms(folder / "histograms.npz"),
        samples=_samples(folder / "samples"),
    )


def objective(config: Mapping[str, Any]) -> str:
    """The name of a configuration's objective."""
    kind = str(config["clipping"]["_target_"]).rpartition(".")[2].lower()
    parts = _tail(config, "ratio").removeprefix("log_ratio_"), _tail(config, "weight")
    if kind != "clip" or not all(parts):
        return kind
    return OBJECTIVES[parts] if parts in OBJECTIVES else " x ".join(parts)


def labels(configs: Sequence[Mapping[str, Any]], folders: Sequence[str]) -> tuple[str, ...]:
    """A short name for each run: its objective, then as few settings as tell apart the runs that share it."""
    names = [objective(config) for config in configs]
    flat = [flatten(config) for config in configs]
    for name in dict.fromkeys(names):
        alike = [i for i, other in enumerate(names) if other == name]
        for i, label in zip(
            alike,
            _distinct(name, [flat[i] for i in alike], [folders[i] for i in alike]),
            strict=True,
        ):
            names[i] = label
    return tuple(names)


def differences(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    """The settings in which runs differ, one value per run ("" where a run has no such setting)."""
    flat = [flatten(run.config) for run in runs]
    return {key: tuple(_show(f[key]) if key in f else "" for f in flat) for key in _differing(flat)}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Material settings under dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        elif f"{prefix}{key}".split(".")[0] not in IMMATERIAL:
            flat[f"{prefix}{key}"] = value
    return flat


def _distinct(name: str, flat: Sequence[Mapping[str, Any]], folders: Sequence[str]) -> list[str]:
    found = [name] * len(flat)
    for key in _differing(flat):
        longer = [f"{label}, {_phrase(key, f)}" for label, f in zip(found, flat, strict=True)]
        found = longer if len(set(longer)) > len(set(found)) else found
    clash = len(set(found)) < len(found)
    return (
        [f"{label}, {folder}" for label, folder in zip(found, folders, strict=True)]
        if clash
        else found
    )


def _differing(flat: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of unequal values, choices of a class first."""
    keys = dict.fromkeys(key for f in flat for key in f)
    unequal = [key for key in keys if len({repr(f[key]) if key in f else "" for f in flat}) > 1]
    return sorted(unequal, key=lambda key: not key.endswith("_target_"))


def _phrase(key: str, flat: Mapping[str, Any]) -> str:
    value = _show(flat[key]) if key in flat else "none"
    if key.endswith("_target_"):
        return value.lower()
    name = {"clipping.high": "clip", "clipping.low": "lower clip"}.get(
        key, key.rpartition(".")[2].replace("_", " ")
    )
    return f"{name} {value}"


def _show(value: Any) -> str:
    """A setting's value; of a dotted path its last word."""
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-").replace("e+0", "e")
    word = re.fullmatch(r"(?:[a-z_]\w*\.)+(\w+)", str(value))
    return "null" if value is None else word[1] if word else str(value)


def _tail(config: Mapping[str, Any], part: str) -> str:
    """The last word of what a part of the clipping targets."""
    clipping = config["clipping"]
    return str(clipping[part]["_target_"]).rpartition(".")[2] if part in clipping else ""


def _config(path: Path) -> Mapping[str, Any]:
    require(path.is_file(), f"{path.parent} holds no config.yaml; give a run folder")
    config = _loaded(path, lambda: yaml.safe_load(path.read_text(encoding="utf-8")))
    whole = (
        isinstance(config, dict)
        and isinstance(config.get("clipping"), dict)
        and "_target_" in config["clipping"]
    )
    require(whole, f"{path} is not the configuration of a run: clipping._target_ is missing")
    return dict(config)


def _rows(path: Path) -> tuple[tuple[Mapping[str, float], ...], int]:
    require(
        path.is_file(), f"{path.parent} holds no metrics.jsonl yet; wait for its first iteration"
    )
    lines = [
        line
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    parsed = [_row(line) for line in lines]
    merged: dict[float, dict[str, float]] = {}
    for row in parsed:
        if row:
            merged[row["iteration"]] = row
    require(bool(merged), f"{path} holds no metrics yet; wait for the run's first iteration")
    return tuple(merged[i] for i in sorted(merged)), parsed.count({})


def _row(line: str) -> dict[str, float]:
    """The finite numbers of a line, or nothing where it is torn."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    if not isinstance(found, dict) or "iteration" not in found:
        return {}
    return {
        k: float(v) for k, v in found.items() if isinstance(v, int | float) and math.isfinite(v)
    }


def _histograms(path: Path) -> Histograms | None:
    if not path.is_file():
        return None
    arrays = _loaded(path, lambda: _arrays(path))
    counts = {key: value for key, value in arrays.items() if "/hist/" in key}
    return (
        Histograms(iteration=arrays["iteration"], edges=arrays["edges"], counts=counts)
        if counts
        else None
    )


def _arrays(path: Path) -> dict[str, ndarray]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
        return dict(found)


def _samples(folder: Path) -> Samples | None:
    grids = {int(path.stem): path for path in sorted(folder.glob("*.png")) if path.stem.isdigit()}
    captions = folder / "captions.txt"
    if not grids or not captions.is_file():
        return None
    files = {iteration: path.with_suffix(".json") for iteration, path in grids.items()}
    return Samples(
        grids=grids,
        captions=tuple(captions.read_text(encoding="utf-8").splitlines()),
        notes={
            n: _loaded(file, partial(_notes, file)) for n, file in files.items() if file.is_file()
        },
    )


def _notes(path: Path) -> tuple[str, ...]:
    """A text on each picture."""
    told = [picture["notes"] for picture in json.loads(path.read_text(encoding="utf-8"))]
    return tuple(
        "\n".join(f"{name}: {line}" for name, lines in notes.items() for line in lines)
        for notes in told
    )


def _loaded(path: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
