"""Random scenes that satisfy their prompts exactly: what is in them, how large and where."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from grpo_guard.schema import record
from grpo_guard.types import Clause, Prompt
from grpo_guard.world.glyphs import glyph_sizes
from grpo_guard.world.scene import (
    LEXICON,
    PLACES,
    RELATIONS,
    SHAPE_COLORS,
    SIZE,
    THINGS,
    USUAL_COLORS,
    WORD,
)

SLOTS = 4
"""Maximum number of things in a picture."""
EDGE_MARGIN = 2.0
"""Minimum distance in px between a thing and the edge of the picture."""
LATTICE = 4.0
"""Px between possible centres; coarse enough that a small model learns sharp outlines."""
GAP = 3.0
"""Minimum distance in px between two things."""
SLANT = 0.75
"""Maximum offset across the axis of a relation, as a share of the offset along it."""
EXTENTS = np.array([(20, 26), (16, 24), (15, 19), (14, 18)], np.float32)
"""Range of a shape's size in px; one row for each number of things in the picture."""
TRIES = 32
"""Number of layouts that are proposed at a time for each scene."""

_COLOR_NAMES = tuple(SHAPE_COLORS)


@record
class Scenes:
    """A batch of scenes with up to `SLOTS` things each."""

    kind: Int[np.ndarray, "B S"]
    """Index into `THINGS`; -1 marks an empty slot."""
    color: Int[np.ndarray, "B S"]
    """Index into the palette; meaningless for a word."""
    word: Int[np.ndarray, "B S"]
    """Index into the lexicon; meaningless for a shape."""
    size: Float[np.ndarray, "B S 2"]
    """Width and height in px."""
    center: Float[np.ndarray, "B S 2"]
    """Centre (x, y) in px from the top left."""


@record
class _Rules:
    """What the prompts demand of a layout, slot by slot."""

    toward: Float[np.ndarray, "B S 2"]
    """Unit vector from the anchor to the thing; zero if there is no relation."""
    anchor: Int[np.ndarray, "B S"]
    """Slot of the thing that the relation refers to."""
    height: Float[np.ndarray, "B S 2"]
    """Range of the centre's height in px."""

    def __getitem__(self, rows: Int[np.ndarray, " R"]) -> _Rules:
        return _Rules(toward=self.toward[rows], anchor=self.anchor[rows], height=self.height[rows])


def arrange(prompts: Sequence[Prompt], rng: np.random.Generator) -> Scenes:
    """Draw one scene per prompt with random sizes and positions.

    A shape whose clause names no colour gets its usual one.
    """
    slots = [
        [clause for clause in prompt.include for _ in range(clause.count)] for prompt in prompts
    ]
    kind = _fill_slots(slots, lambda thing: THINGS.index(thing.name), empty=-1)
    word = _fill_slots(slots, lambda thing: LEXICON.index(thing.text) if thing.text else 0, empty=0)
    color = _fill_slots(slots, _color, empty=0)
    size = _sizes(kind, word, rng)
    center = _place(kind, size, _rules(prompts, slots), rng)
    return Scenes(kind=kind, color=color, word=word, size=size, center=center)


def _color(thing: Clause) -> int:
    """Return the palette index of a thing; a word has none, so any number will do."""
    return _COLOR_NAMES.index(thing.color or USUAL_COLORS[thing.name]) if thing.name != WORD else 0


def _fill_slots(
    slots: Sequence[Sequence[Clause]], value: Callable[[Clause], int], *, empty: int
) -> Int[np.ndarray, "B S"]:
    table = np.full((len(slots), SLOTS), empty)
    for row, things in zip(table, slots, strict=True):
        row[: len(things)] = [value(thing) for thing in things]
    return table


def _rules(prompts: Sequence[Prompt], slots: Sequence[Sequence[Clause]]) -> _Rules:
    shape = (len(prompts), SLOTS)
    toward = np.zeros((*shape, 2), np.float32)
    anchor = np.zeros(shape, int)
    height = np.broadcast_to(np.array((0, SIZE), np.float32), (*shape, 2)).copy()
    for row, (prompt, things) in enumerate(zip(prompts, slots, strict=True)):
        for slot, thing in enumerate(things):
            if thing.position is None:
                continue
            relation, clause = thing.position
            if relation in PLACES:
                height[row, slot] = PLACES[relation]
            else:
                toward[row, slot] = RELATIONS[relation]
                anchor[row, slot] = things.index(prompt.include[clause])
    return _Rules(toward=toward, anchor=anchor, height=height)


def _sizes(
    kind: Int[np.ndarray, "B S"], word: Int[np.ndarray, "B S"], rng: np.random.Generator
) -> Float[np.ndarray, "B S 2"]:
    """Draw even sizes for shapes; words have the size of their glyphs."""
    low, high = EXTENTS[(kind >= 0).sum(1) - 1].T[:, :, None]
    square = (2 * np.rint((low + (high - low) * rng.random(kind.shape, np.float32)) / 2))[..., None]
    is_word = (kind == THINGS.index(WORD))[..., None]
    size: Float[np.ndarray, "B S 2"] = np.where(is_word, glyph_sizes()[word], square)
    return size


def _place(
    kind: Int[np.ndarray, "B S"],
    size: Float[np.ndarray, "B S 2"],
    rules: _Rules,
    rng: np.random.Generator,
) -> Float[np.ndarray, "B S 2"]:
    """Sample by rejection: propose layouts until every scene has one that obeys its rules."""
    center = np.zeros_like(size)
    pending = np.arange(len(kind))
    while len(pending):
        proposal = _propose(kind[pending], size[pending], rng)
        valid = _apart(kind[pending], size[pending], proposal) & _obeys(rules[pending], proposal)
        solved = valid.any(1)
        center[pending[solved]] = proposal[solved, valid[solved].argmax(1)]
        pending = pending[~solved]
    return center


def _propose(
    kind: Int[np.ndarray, "B S"], size: Float[np.ndarray, "B S 2"], rng: np.random.Generator
) -> Float[np.ndarray, "B tries S 2"]:
    """Draw centres on the lattice and inside the margins.

    A word is centred from left to right, and its top is on the lattice.
    """
    is_word = (kind == THINGS.index(WORD))[..., None]
    offset = np.where(is_word, size / 2, 0)  # from the lattice point to the centre
    first = np.ceil((EDGE_MARGIN + size / 2 - offset) / LATTICE)
    last = np.floor((SIZE - EDGE_MARGIN - size / 2 - offset) / LATTICE)
    chosen = rng.random((len(kind), TRIES, SLOTS, 2), np.float32).transpose(1, 0, 2, 3)
    center = LATTICE * (first + np.floor(chosen * (last - first + 1))) + offset
    middle = np.floor(SIZE / 2 - offset[..., 0]) + offset[..., 0]
    center[..., 0] = np.where(is_word[..., 0], middle, center[..., 0])
    proposal: Float[np.ndarray, "B tries S 2"] = center.swapaxes(0, 1).astype(np.float32)
    return proposal


def _apart(
    kind: Int[np.ndarray, "B S"],
    size: Float[np.ndarray, "B S 2"],
    center: Float[np.ndarray, "B tries S 2"],
) -> Bool[np.ndarray, "B tries"]:
    """Return whether the boxes of all pairs of things are at least `GAP` apart."""
    first, second = np.triu_indices(SLOTS, 1)
    distance = np.abs(center[:, :, first] - center[:, :, second])
    needed = (size[:, first] + size[:, second]) / 2 + GAP
    absent = (kind[:, first] < 0) | (kind[:, second] < 0)
    clear = (distance >= needed[:, None]).any(-1)
    apart: Bool[np.ndarray, "B tries"] = (clear | absent[:, None]).all(-1)
    return apart


def _obeys(rules: _Rules, center: Float[np.ndarray, "B tries S 2"]) -> Bool[np.ndarray, "B tries"]:
    """Return whether related things stand clearly in their relation, and words at their places.

    The test of a relation alone accepts an offset of zero; `_apart` rules that out.
    """
    toward = rules.toward[:, None]
    offset = center - np.take_along_axis(center, rules.anchor[:, None, :, None], 2)
    across = np.abs(offset * toward[..., ::-1]).sum(-1)
    along = (offset * toward).sum(-1)
    low, high = np.moveaxis(rules.height, -1, 0)[:, :, None]
    height = center[..., 1]
    obeyed: Bool[np.ndarray, "B tries"] = (
        (across <= SLANT * along) & (height >= low) & (height <= high)
    ).all(-1)
    return obeyed
