"""Samples side by side: the same prompts from the same noise, before and after each run."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy import ndarray
from PIL import Image

from grpo_guard.report.runs import Run, Samples
from grpo_guard.report.theme import INK, RC
from grpo_guard.types import record

ACROSS = 8  # prompts beside each other
LARGEST = 160  # px, larger pictures are shrunk
PADDING = 2  # px around each picture of a grid, as the run folder has it


@record
class Strip:
    """Pictures of all prompts at one moment of a run, and what rewards say of each, if that is known."""

    label: str
    tiles: UInt8[ndarray, "N S S 3"]
    notes: Sequence[str] = ()


def alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that have samples, those with the same captions together."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        if run.samples:
            groups.setdefault(run.samples.captions, []).append(run)
    return list(groups.values())


def figure(runs: Sequence[Run]) -> Figure:
    """The start, then each run's end; runs share their captions."""
    return sheet(strips(runs), runs[0].samples.captions if runs[0].samples else ())


def sheet(shown: Sequence[Strip], captions: Sequence[str]) -> Figure:
    """A column per prompt, a row per strip."""
    bands = math.ceil(len(captions) / ACROSS)
    with rc_context(RC):
        drawn = Figure(figsize=(10.5, bands * (len(shown) * 1.12 + 0.62)), layout="constrained")
        for band, axes in enumerate(drawn.subplots(bands, 1, squeeze=False).flat):
            _band(axes, shown, captions, slice(band * ACROSS, (band + 1) * ACROSS))
    return drawn


def strips(runs: Sequence[Run]) -> list[Strip]:
    """The first pictures, once where runs begin alike, and each run's last."""
    found: list[Strip] = []
    for run in runs:
        if run.samples is None:
            continue
        first, last = min(run.samples.grids), max(run.samples.grids)
        start = tiles(run.samples, first)
        if not any(np.array_equal(start, strip.tiles) for strip in found):
            name = "start" if first == 0 else f"iteration {first}"
            label = name if not found else f"{run.label}\n{name}"
            found.append(Strip(label=label, tiles=start, notes=run.samples.notes.get(first, ())))
        if last > first:
            label, notes = f"{run.label}\niteration {last}", run.samples.notes.get(last, ())
            found.append(Strip(label=label, tiles=tiles(run.samples, last), notes=notes))
    return found


def tiles(samples: Samples, iteration: int) -> UInt8[ndarray, "N S S 3"]:
    """The pictures of a grid, at most `LARGEST` px wide."""
    return np.stack(
        [np.asarray(_small(tile)) for tile in cut(samples.grids[iteration], len(samples.captions))]
    )


def cut(path: Path, count: int) -> list[Image.Image]:
    """The first `count` pictures of a grid that is as square as can be."""
    with Image.open(path) as opened:
        grid = opened.convert("RGB")
    if count == 1:
        return [grid]
    columns = math.ceil(math.sqrt(count))
    width = (grid.width - PADDING) // columns
    height = (grid.height - PADDING) // math.ceil(count / columns)
    corners = [
        (PADDING + k % columns * width, PADDING + k // columns * height) for k in range(count)
    ]
    return [grid.crop((x, y, x + width - PADDING, y + height - PADDING)) for x, y in corners]


def _small(tile: Image.Image) -> Image.Image:
    share = min(1.0, LARGEST / max(tile.size))
    return (
        tile if share == 1 else tile.resize((round(tile.width * share), round(tile.height * share)))
    )


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.fill(line, width) for line in text.splitlines())


def _hint(text: str, x: float, y: float, name: str) -> Rectangle:
    """A pane over a picture, too thin to be seen, with hover text for `page.svg`."""
    return Rectangle((x, y), 0.94, 0.94, alpha=1e-3, label=text, gid=f"hint-{name}")


def _band(axes: Axes, shown: Sequence[Strip], captions: Sequence[str], columns: slice) -> None:
    axes.set_axis_off()
    axes.set(xlim=(0, ACROSS + 1.0), ylim=(len(shown), -0.62), aspect="equal")
    for row, strip in enumerate(shown):
        axes.text(
            0.95,
            row + 0.48,
            _wrapped(strip.label, 16),
            ha="right",
            va="center",
            fontsize=8.5,
            color=INK[0],
        )
        for column, tile in enumerate(strip.tiles[columns]):
            left = column + 1.0
            axes.imshow(
                tile,
                extent=(left + 0.03, left + 0.97, row + 0.97, row + 0.03),
                interpolation="none",
            )
        for column, text in enumerate(strip.notes[columns]):
            if text:
                axes.add_patch(
                    _hint(text, column + 1.03, row + 0.03, f"{columns.start}-{row}-{column}")
                )
    axes.set(xlim=(0, ACROSS + 1.0), ylim=(len(shown), -0.62))  # imshow has moved them
    for column, caption in enumerate(captions[columns]):
        axes.text(
            column + 1.5, -0.05, _wrapped(caption, 17), ha="center", va="bottom", fontsize=7.5
        )
