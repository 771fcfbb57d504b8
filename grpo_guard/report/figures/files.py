"""Figures of curves as CSV files, and as the JSON that the page draws them from."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from numpy import ndarray

from grpo_guard.report.figures.panels import CurveFigure, Line, Panel, axis_title
from grpo_guard.report.theme import marker_path

DIGITS = 6
"""Significant digits of numbers on the page; the CSV files have all."""


def write_csv(data: CurveFigure, path: Path) -> None:
    """Write one row per point of every line."""
    axes = sorted({axis for panel in data.panels for line in panel.lines for axis in line.x})
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["panel", "arm", "line", *axes, "value", "low", "high"])
        for panel in data.panels:
            for line in panel.lines:
                writer.writerows(_line_to_rows(panel, line, axes))


def _line_to_rows(panel: Panel, line: Line, axes: Sequence[str]) -> Iterator[list[str]]:
    unknown = [math.nan] * len(line.y)
    columns = [line.x.get(axis, unknown) for axis in axes]
    for point in zip(*columns, line.y, line.low, line.high, strict=True):
        cells = ["" if math.isnan(value) else repr(float(value)) for value in point]
        yield [panel.title, line.arm, line.label, *cells]


def to_json(data: CurveFigure) -> dict[str, Any]:
    """Return a figure for the script of the page."""
    return {
        "name": data.name,
        "axes": data.axes,
        "titles": {axis: axis_title(axis) for axis in data.axes},
        "path": data.is_path,
        "panels": [_panel_to_json(panel) for panel in data.panels],
    }


def _panel_to_json(panel: Panel) -> dict[str, Any]:
    return {
        "title": panel.title,
        "unit": panel.unit,
        "log": panel.is_logarithmic,
        "baseline": panel.baseline,
        "faint": panel.seed_opacity,
        "lines": [_line_to_json(line) for line in panel.lines],
    }


def _line_to_json(line: Line) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "arm": line.arm,
        "color": line.color,
        "label": line.label,
        "mean": line.is_mean,
        "behind": line.is_behind,
        "x": {axis: _round_all(values) for axis, values in line.x.items()},
        "y": _round_all(line.y),
    }
    if line.is_mean:
        fields["marker"] = marker_path(line.color)
    low = _round_all(line.low)
    if any(value is not None for value in low):
        fields |= {"low": low, "high": _round_all(line.high)}
    return fields


def _round_all(values: Float[ndarray, " N"] | Iterable[float]) -> list[float | None]:
    """Return numbers with few digits; None for NaN, which JSON does not have."""
    return [float(f"{v:.{DIGITS}g}") if math.isfinite(v) else None for v in values]
