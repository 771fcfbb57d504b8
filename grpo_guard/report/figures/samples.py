"""Sample pictures side by side: the same prompts from the same noise."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import UInt8
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy import ndarray
from PIL import Image

from grpo_guard.report.figures.plot import WIDTH_INCHES
from grpo_guard.report.theme import INK_COLORS, MATPLOTLIB
from grpo_guard.schema import record

PROMPTS_PER_BAND = 8  # prompts beside each other
MAX_PIXELS = 160  # larger pictures are shrunk, because the page holds all of them
STRIPS_DPI = 150
PADDING = 2  # pixels around each picture of a grid, as the run folder has them


@record
class Strip:
    """One row of pictures: all prompts at one moment of a run."""

    label: str
    """Name of the row."""
    tiles: UInt8[ndarray, "N S S 3"]
    """The pictures."""
    notes: Sequence[str] = ()
    """What rewards noted on each picture; empty if that is not known."""


def draw_strips(strips: Sequence[Strip], captions: Sequence[str]) -> Figure:
    """Draw a column per prompt and a row per strip, in bands of `PROMPTS_PER_BAND` prompts."""
    bands = math.ceil(len(captions) / PROMPTS_PER_BAND)
    height = bands * (len(strips) * 1.12 + 0.62)
    with rc_context(MATPLOTLIB):
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        for band, axes in enumerate(figure.subplots(bands, 1, squeeze=False).flat):
            columns = slice(band * PROMPTS_PER_BAND, (band + 1) * PROMPTS_PER_BAND)
            _draw_band(axes, strips, captions, columns)
    return figure


def save_strips(strips: Sequence[Strip], captions: Sequence[str], path: Path) -> None:
    """Draw strips and write them as a PNG file."""
    with rc_context(MATPLOTLIB):
        draw_strips(strips, captions).savefig(path, dpi=STRIPS_DPI)


def count_columns(count: int) -> int:
    """Return the columns of a grid of so many pictures, as `logger` counts them, without torch."""
    return math.ceil(math.sqrt(count))


def cut_grid(path: Path, count: int) -> list[Image.Image]:
    """Cut out the `count` pictures of a grid."""
    with Image.open(path) as file:
        grid = file.convert("RGB")
    if count == 1:
        return [grid]
    columns = count_columns(count)
    width = (grid.width - PADDING) // columns
    height = (grid.height - PADDING) // math.ceil(count / columns)
    corners = [
        (PADDING + k % columns * width, PADDING + k // columns * height) for k in range(count)
    ]
    return [grid.crop((x, y, x + width - PADDING, y + height - PADDING)) for x, y in corners]


def shrink(tile: Image.Image, pixels: int = MAX_PIXELS) -> Image.Image:
    """Return a picture at most so many pixels wide and high."""
    scale = min(1.0, pixels / max(tile.size))
    if scale == 1:
        return tile
    return tile.resize((round(tile.width * scale), round(tile.height * scale)))


def _draw_band(
    axes: Axes, strips: Sequence[Strip], captions: Sequence[str], columns: slice
) -> None:
    """Draw some of the columns; every picture has a cell of 1 by 1."""
    axes.set_axis_off()
    axes.set_aspect("equal")
    for row, strip in enumerate(strips):
        _draw_strip(axes, strip, row, columns)
    # only now, because imshow sets the limits to those of its picture
    axes.set(xlim=(0, PROMPTS_PER_BAND + 1.0), ylim=(len(strips), -0.62))
    for column, caption in enumerate(captions[columns]):
        text = _wrap(caption, 17)
        axes.text(column + 1.5, -0.05, text, ha="center", va="bottom", fontsize=7.5)


def _draw_strip(axes: Axes, strip: Strip, row: int, columns: slice) -> None:
    axes.text(
        0.95, row + 0.48, _wrap(strip.label, 16),
        ha="right", va="center", fontsize=8.5, color=INK_COLORS[0],
    )  # fmt: skip
    for column, tile in enumerate(strip.tiles[columns]):
        left = column + 1.0
        extent = (left + 0.03, left + 0.97, row + 0.97, row + 0.03)
        axes.imshow(tile, extent=extent, interpolation="none")
    for column, text in enumerate(strip.notes[columns]):
        if text:
            name = f"{columns.start}-{row}-{column}"
            axes.add_patch(_make_hint(text, column + 1.03, row + 0.03, name))


def _make_hint(text: str, x: float, y: float, name: str) -> Rectangle:
    """Return an invisible pane over a picture, whose label `markup.to_svg` makes hover text."""
    return Rectangle((x, y), 0.94, 0.94, alpha=1e-3, label=text, gid=f"hint-{name}")


def _wrap(text: str, width: int) -> str:
    return "\n".join(textwrap.fill(line, width) for line in text.splitlines())
