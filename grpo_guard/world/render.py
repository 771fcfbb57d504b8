"""Renders scenes: antialiased shapes, words, and a little noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from grpo_guard.types import Prompt
from grpo_guard.world.glyphs import TALLEST, WIDEST, glyph_bank
from grpo_guard.world.layout import SLOTS, Scenes, arrange
from grpo_guard.world.scene import BACKGROUND, PALETTE, SHAPES, SIZE, THINGS, WORD, WORD_COLOR

NOISE = 0.01
"""Standard deviation of the noise of a pixel, for colours in [0, 1]."""
ARM = 0.36
"""Half width of a cross's arms, as a share of its half size."""
_CHUNK = 128
"""Pictures per pass: small enough that the working set stays in the CPU's cache."""

_Offset = Float[np.ndarray, "..."]


def render(prompts: Sequence[Prompt], rng: np.random.Generator) -> UInt8[np.ndarray, "B H W 3"]:
    """Draw one random picture per prompt that satisfies the prompt exactly."""
    pictures = np.empty((len(prompts), SIZE, SIZE, 3), np.uint8)
    for start in range(0, len(prompts), _CHUNK):
        rows = slice(start, start + _CHUNK)
        image = paint(arrange(prompts[rows], rng), rng) * 255 + 0.5
        pictures[rows] = image.astype(np.uint8).transpose(0, 2, 3, 1)
    return pictures


def paint(scenes: Scenes, rng: np.random.Generator) -> Float32[np.ndarray, "B 3 H W"]:
    """Paint scenes on a light grey; values are in [0, 1]."""
    grey = rng.uniform(*BACKGROUND, (len(scenes.kind), 1, 1, 1)).astype(np.float32)
    image = rng.standard_normal((len(grey), 3, SIZE, SIZE), np.float32)
    image *= NOISE
    image += grey
    for slot in range(SLOTS):
        rows = np.flatnonzero(scenes.kind[:, slot] >= 0)
        contrast = _colors(scenes, rows, slot)[:, :, None, None] - grey[rows]
        image[rows] += contrast * _mask(scenes, rows, slot)[:, None]
    return np.clip(image, 0, 1, out=image)


def coverage(shape: int, x: _Offset, y: _Offset, half: _Offset) -> _Offset:
    """Return the share of each pixel that a shape covers, from its signed distance.

    `shape` indexes `SHAPES`; `x` and `y` are offsets from its centre, `half` is half its size,
    all in px.
    """
    return np.clip(0.5 - _DISTANCES[shape](x, y, half), 0, 1)


def _colors(scenes: Scenes, rows: Int[np.ndarray, " R"], slot: int) -> Float32[np.ndarray, "R 3"]:
    is_word = scenes.kind[rows, slot] == THINGS.index(WORD)
    black = np.array(WORD_COLOR, np.float32)
    return np.where(is_word[:, None], black, PALETTE[scenes.color[rows, slot]])


def _mask(scenes: Scenes, rows: Int[np.ndarray, " R"], slot: int) -> Float32[np.ndarray, "R H W"]:
    """Return the share of each pixel that the thing in a slot covers."""
    kind = scenes.kind[rows, slot]
    canvas = np.zeros((len(rows), SIZE, SIZE), np.float32)
    pixel = np.arange(SIZE, dtype=np.float32) + 0.5
    for shape in range(len(SHAPES)):
        chosen = rows[kind == shape]
        x, y = scenes.center[chosen, slot].T[:, :, None]
        half = scenes.size[chosen, slot, :1, None] / 2
        canvas[kind == shape] = coverage(shape, (pixel - x)[:, None], (pixel - y)[:, :, None], half)
    is_word = kind == THINGS.index(WORD)
    canvas[is_word] = _print(scenes, rows[is_word], slot)
    return canvas


def _print(scenes: Scenes, rows: Int[np.ndarray, " R"], slot: int) -> Float32[np.ndarray, "R H W"]:
    """Paste glyph masks at whole pixels."""
    # Padded glyphs may reach beyond the picture, so the canvas has room for them and is cropped.
    canvas = np.zeros((len(rows), SIZE + TALLEST, SIZE + WIDEST), np.float32)
    corner = np.rint(scenes.center[rows, slot] - scenes.size[rows, slot] / 2).astype(int)
    x, y = corner.T[:, :, None]
    lines = y + np.arange(TALLEST)
    columns = x + np.arange(WIDEST)
    pictures = np.arange(len(rows))[:, None, None]
    canvas[pictures, lines[:, :, None], columns[:, None]] = glyph_bank()[scenes.word[rows, slot]]
    return canvas[:, :SIZE, :SIZE]


def _circle(x: _Offset, y: _Offset, half: _Offset) -> _Offset:
    distance: _Offset = np.sqrt(x * x + y * y) - half
    return distance


def _square(x: _Offset, y: _Offset, half: _Offset) -> _Offset:
    distance: _Offset = np.maximum(np.abs(x), np.abs(y)) - half
    return distance


def _triangle(x: _Offset, y: _Offset, half: _Offset) -> _Offset:
    """Return the distance to a triangle with its apex at the top, as wide as it is high."""
    distance: _Offset = np.maximum(y - half, (2 * np.abs(x) - y - half) / np.sqrt(np.float32(5)))
    return distance


def _cross(x: _Offset, y: _Offset, half: _Offset) -> _Offset:
    x = np.abs(x)
    y = np.abs(y)
    distance: _Offset = np.maximum(np.maximum(x, y) - half, np.minimum(x, y) - ARM * half)
    return distance


_DISTANCES = (_circle, _square, _triangle, _cross)
"""Signed distances in px, in the order of `SHAPES`; negative inside."""
