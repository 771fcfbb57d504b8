"""Run folders that have been read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from grpo_guard.report.settings import variant_name
from grpo_guard.schema import record, require

Row = Mapping[str, float]
"""The finite metrics of an iteration."""


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
    scores: Mapping[int, tuple[Mapping[str, float], ...]]
    """The scores of each picture by metric key, by iteration as the notes."""


@record
class Run:
    """A run folder that has been read."""

    folder: Path
    """The run folder."""
    label: str
    """Name of the run on the page."""
    config: Mapping[str, Any]
    """The composed configuration."""
    rows: tuple[Row, ...]
    """The metrics of each logged iteration, in order."""
    histograms: Histograms | None
    """Histograms of log-ratios; None if the folder has none."""
    samples: Samples | None
    """Sample pictures; None if the folder has none."""
    prompt_scores: Mapping[int, Mapping[str, Float[ndarray, " Q"]]]
    """The score of each held-out prompt by metric key, by iteration of the evaluation; NaN where a
    reward gave none. Empty if the folder has none."""
    damages: tuple[str, ...] = ()
    """A line for every file that is damaged or missing: what is lost, and how to restore it."""

    @cached_property
    def columns(self) -> Mapping[str, tuple[Int[ndarray, " _"], Float[ndarray, " _"]]]:
        """The positions in `rows` of the rows that have each metric, and its values."""
        alike: dict[tuple[str, ...], list[int]] = {}
        for position, row in enumerate(self.rows):
            alike.setdefault(tuple(row), []).append(position)
        parts: dict[str, list[tuple[ndarray, ndarray]]] = {}
        for keys, positions in alike.items():
            place = np.array(positions, dtype=int)
            values = np.array([list(self.rows[i].values()) for i in positions], dtype=float)
            for key, column in zip(keys, values.T, strict=True):
                parts.setdefault(key, []).append((place, column))
        return {key: _join_columns(columns) for key, columns in parts.items()}

    def keys(self, prefix: str) -> tuple[str, ...]:
        """Return all metric keys that begin with the prefix, sorted."""
        return tuple(sorted(key for key in self.columns if key.startswith(prefix)))

    def series(self, key: str) -> tuple[Int[ndarray, " N"], Float[ndarray, " N"]]:
        """Return the iterations that logged a metric, and its values."""
        if key not in self.columns:
            return np.empty(0, dtype=int), np.empty(0)
        positions, values = self.columns[key]
        return self.columns["iteration"][1][positions].astype(int), values

    def table(self, keys: Sequence[str]) -> Float[ndarray, "N K"]:
        """Return the values of some metrics in every row; NaN where a row lacks one."""
        values = np.full((len(self.rows), len(keys)), np.nan)
        for column, key in enumerate(keys):
            positions, known = self.columns.get(key, ([], []))
            values[positions, column] = known
        return values

    def setting(self, key: str) -> Any:
        """Return the setting under a dotted key; raises ConfigError if there is none."""
        value: Any = self.config
        for part in key.split("."):
            require(
                isinstance(value, Mapping) and part in value,
                f"{self.folder / 'config.yaml'} has no {key}; give a run of this version",
            )
            value = value[part]
        return value

    def seconds(self) -> dict[str, float]:
        """Return the seconds spent in each part of the run, such as "rollout" or "eval"."""
        keys = [key for key in self.keys("time/") if key != "time/total"]
        return {key.removeprefix("time/"): float(self.series(key)[1].sum()) for key in keys}

    @cached_property
    def spent(self) -> Mapping[str, tuple[Float[ndarray, " N"], Float[ndarray, " N"]]]:
        """Images generated and hours passed: how many iterations had trained, and what they took.

        Hours leave out the time between runs of a run that was resumed.
        """
        iteration, images = self.series("images")
        parts = [key for key in self.keys("time/") if key not in ("time/total", "time/eval")]
        whole = self.table(["time/total"])[:, 0]
        seconds = np.where(np.isnan(whole), np.nansum(self.table(parts), 1), whole)
        seconds = seconds + np.nan_to_num(self.table(["time/eval"])[:, 0])
        hours = seconds.cumsum()[self.columns.get("images", ([], []))[0]] / 3600
        ends = np.append(0.0, iteration + 1)
        return {"images": (ends, np.append(0.0, images)), "hours": (ends, np.append(0.0, hours))}

    @property
    def iterations(self) -> int:
        """Number of iterations that have trained."""
        return sum("images" in row for row in self.rows)

    @property
    def has_ended(self) -> bool:
        """Whether no iteration is to come."""
        return has_ended(self.rows)

    @property
    def variant(self) -> str:
        """Name of the clipping variant, such as "guard"."""
        return variant_name(self.config)

    @property
    def ratio(self) -> str:
        """The log-ratio that the run optimises, such as "raw" or "norm"; "" if it has none."""
        target = self.config["clipping"].get("ratio", {}).get("_target_", "")
        return str(target).rpartition(".")[2].removeprefix("log_ratio_")


def has_ended(rows: Sequence[Row]) -> bool:
    """Return whether no iteration is to come: the last row of a run is an evaluation alone."""
    return "images" not in rows[-1]


def step_of(key: str) -> int:
    """Return the step of a key such as "ratio_raw/hist/03"; a number of any length."""
    return int(key.rpartition("/")[2])


def _join_columns(
    parts: Sequence[tuple[Int[ndarray, " _"], Float[ndarray, " _"]]],
) -> tuple[Int[ndarray, " N"], Float[ndarray, " N"]]:
    """Join positions and values of rows with different keys, in the order of the rows."""
    positions, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(positions)
    return positions[order], values[order]
