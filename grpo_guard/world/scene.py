"""The contents of the world: colours, shapes, words, and the relations between them.

Every value here is baked into the shipped checkpoints and scorers. Whoever changes one must train
them again with scripts/build_tiny.py.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np

SIZE = 64
"""Width and height of a picture in px."""

SHAPE_COLORS = MappingProxyType(
    {
        "red": (0.88, 0.10, 0.12),
        "green": (0.10, 0.65, 0.15),
        "blue": (0.12, 0.22, 0.92),
        "yellow": (0.98, 0.85, 0.05),
        "purple": (0.58, 0.12, 0.72),
        "cyan": (0.05, 0.80, 0.88),
    }
)
"""RGB in [0, 1] of each colour that a shape can have."""
PALETTE = np.array(list(SHAPE_COLORS.values()), np.float32)
"""The values of `SHAPE_COLORS`, one row per colour."""
BACKGROUND = (0.90, 1.00)
"""Range of the grey background."""
WORD_COLOR = (0.0, 0.0, 0.0)
"""RGB of every word: words are always black."""

SHAPES = ("circle", "square", "triangle", "cross")
USUAL_COLORS = MappingProxyType(
    {"circle": "red", "square": "blue", "triangle": "green", "cross": "yellow"}
)
"""The colour of a shape whose caption names none."""
WORD = "word"
THINGS = (*SHAPES, WORD)
"""Names of everything that can be in a picture."""

_WORDS = (
    "stop open exit help cat dog sun moon star fish jazz love "
    "zoo milk bus yes cake wolf king ruby hat quiz park gym"
)
LEXICON = tuple(_WORDS.split())
"""Every word that can be printed."""

RELATIONS = MappingProxyType(
    {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
)
"""Unit vector (x, y) of each relation, from the thing referred to; y points down."""
OPPOSITE = MappingProxyType(
    {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
)

PLACES = MappingProxyType({"at the top": (0.0, 20.0), "at the bottom": (44.0, 64.0)})
"""Range in px of a word's centre, measured from the top of the picture."""
