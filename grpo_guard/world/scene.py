"""What the world is made of: colours, shapes, words, and the relations between them."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np

SIZE = 64  # px, width and height of a picture

COLORS = MappingProxyType(
    {
        "red": (0.88, 0.10, 0.12),
        "green": (0.10, 0.65, 0.15),
        "blue": (0.12, 0.22, 0.92),
        "yellow": (0.98, 0.85, 0.05),
        "purple": (0.58, 0.12, 0.72),
        "cyan": (0.05, 0.80, 0.88),
    }
)
PALETTE = np.array(list(COLORS.values()), np.float32)
BACKGROUND = (0.90, 1.00)  # range of the grey behind everything
INK = (0.0, 0.0, 0.0)

SHAPES = ("circle", "square", "triangle", "cross")
USUAL = MappingProxyType(
    {"circle": "red", "square": "blue", "triangle": "green", "cross": "yellow"}
)
WORD = "word"
NAMES = (*SHAPES, WORD)

_WORDS = "stop open exit help cat dog sun moon star fish jazz love zoo milk bus yes cake wolf king ruby hat quiz park gym"
LEXICON = tuple(_WORDS.split())

# Unit vectors (x, y) from the object referred to, y pointing down.
RELATIONS = MappingProxyType(
    {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
)
OPPOSITE = MappingProxyType(
    {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
)

# Centre heights (lowest, highest) in px a word may have at each place, from the top of the picture.
PLACES = MappingProxyType({"at the top": (0.0, 20.0), "at the bottom": (44.0, 64.0)})
