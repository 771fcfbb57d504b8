"""The words of the lexicon as ink masks, drawn once with the font that Pillow ships."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageDraw, ImageFont

from grpo_guard.world.scene import LEXICON

WIDEST = 56
"""Maximum width of a word in px."""
TALLEST = 20
"""Maximum height of a word in px."""
_ZOOM = 4
"""Words are drawn this many times larger and averaged down, which antialiases them."""
_BOLD = 2
"""Px of the enlarged drawing added around every stroke, which makes the words bold."""


@cache
def glyphs() -> tuple[Float32[np.ndarray, "_ _"], ...]:
    """Return the coverage in [0, 1] of each word of the lexicon, cropped to its ink."""
    return tuple(_largest(word.upper()) for word in LEXICON)


@cache
def glyph_bank() -> Float32[np.ndarray, "W H L"]:
    """Return the glyphs, padded at the right and at the bottom to a common size."""
    bank = np.zeros((len(LEXICON), TALLEST, WIDEST), np.float32)
    for padded, glyph in zip(bank, glyphs(), strict=True):
        padded[: glyph.shape[0], : glyph.shape[1]] = glyph
    return bank


@cache
def glyph_sizes() -> Float32[np.ndarray, "W 2"]:
    """Return the width and height of each word in px."""
    return np.array([glyph.shape[::-1] for glyph in glyphs()], np.float32)


def _largest(text: str) -> Float32[np.ndarray, "_ _"]:
    """Draw a word in the largest font size that fits."""
    drawings = (_draw_word(text, points) for points in range(30, 8, -1))
    return next(mask for mask in drawings if mask.shape[0] <= TALLEST and mask.shape[1] <= WIDEST)


def _draw_word(text: str, points: int) -> Float32[np.ndarray, "_ _"]:
    font = ImageFont.load_default(points * _ZOOM)
    left, top, right, bottom = font.getbbox(text, stroke_width=_BOLD)
    width, height = (-int(-extent // _ZOOM) * _ZOOM for extent in (right - left, bottom - top))
    canvas = Image.new("L", (width, height))
    ImageDraw.Draw(canvas).text((-left, -top), text, fill=255, font=font, stroke_width=_BOLD)
    cells = np.asarray(canvas, np.float32).reshape(height // _ZOOM, _ZOOM, width // _ZOOM, _ZOOM)
    mask: Float32[np.ndarray, "_ _"] = cells.mean((1, 3)) / 255
    return mask
