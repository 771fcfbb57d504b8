"""The lexicon's words as ink masks, drawn once with the font that Pillow ships."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageDraw, ImageFont

from grpo_guard.world.scene import LEXICON

WIDEST, TALLEST = 56, 20  # px
_ZOOM = 4  # drawn this much larger, then averaged down
_BOLD = 2  # px of the enlarged drawing added around every stroke


@cache
def glyphs() -> tuple[Float32[np.ndarray, "_ _"], ...]:
    """Coverage in [0, 1] of each word of the lexicon, cropped to its ink."""
    return tuple(_largest(word.upper()) for word in LEXICON)


@cache
def glyph_bank() -> Float32[np.ndarray, "W H L"]:
    """The glyphs padded at the right and below to a common size."""
    bank = np.zeros((len(LEXICON), TALLEST, WIDEST), np.float32)
    for padded, glyph in zip(bank, glyphs(), strict=True):
        padded[: glyph.shape[0], : glyph.shape[1]] = glyph
    return bank


@cache
def glyph_sizes() -> Float32[np.ndarray, "W 2"]:
    """Width and height in px of each word."""
    return np.array([glyph.shape[::-1] for glyph in glyphs()], np.float32)


def _largest(text: str) -> Float32[np.ndarray, "_ _"]:
    drawings = (_draw(text, points) for points in range(30, 8, -1))
    return next(mask for mask in drawings if mask.shape[0] <= TALLEST and mask.shape[1] <= WIDEST)


def _draw(text: str, points: int) -> Float32[np.ndarray, "_ _"]:
    font = ImageFont.load_default(points * _ZOOM)
    left, top, right, bottom = font.getbbox(text, stroke_width=_BOLD)
    size = [-int(-extent // _ZOOM) * _ZOOM for extent in (right - left, bottom - top)]
    canvas = Image.new("L", (size[0], size[1]))
    ImageDraw.Draw(canvas).text((-left, -top), text, fill=255, font=font, stroke_width=_BOLD)
    cells = np.asarray(canvas, np.float32).reshape(size[1] // _ZOOM, _ZOOM, size[0] // _ZOOM, _ZOOM)
    mask: Float32[np.ndarray, "_ _"] = cells.mean((1, 3)) / 255
    return mask
