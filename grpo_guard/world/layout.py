"""Where things go: random scenes that satisfy their prompts exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from grpo_guard.types import Clause, Prompt, record
from grpo_guard.world.glyphs import glyph_sizes
from grpo_guard.world.scene import COLORS, LEXICON, NAMES, PLACES, RELATIONS, SIZE, USUAL, WORD

SLOTS = 4  # things in a picture, at most
MARGIN = 2.0  # px to the picture's edge
LATTICE = 4.0  # px between possible centres: coarse enough that a small model learns sharp outlines
GAP = 3.0  # px between two things
SLANT = 0.75  # offset across a relation's axis, at most, as a share of the offset along it
EXTENTS = np.array(
    [(20, 26), (16, 24), (15, 19), (14, 18)], np.float32
)  # px, by the number of things
TRIES = 32  # layouts proposed per scene and round

_COLOR_NAMES = tuple(COLORS)


@record
class Scenes:
    """A batch of scenes with up to `SLOTS` things each; lengths in px.

    `kind` indexes `NAMES` (-1: nothing there), `color` the palette, `word` the lexicon.
    """

    kind: Int[np.ndarray, "B S"]
    color: Int[np.ndarray, "B S"]
    word: Int[np.ndarray, "B S"]
    size: Float[np.ndarray, "B S 2"]  # width, height
    center: Float[np.ndarray, "B S 2"]  # x, y


@record
class _Rules:
    """What a layout must obey: per slot, the relation (a unit vector, zero for none) to a slot, and a height range."""

    toward: Float[np.ndarray, "B S 2"]
    anchor: Int[np.ndarray, "B S"]
    height: Float[np.ndarray, "B S 2"]

    def __getitem__(self, rows: Int[np.ndarray, " R"]) -> _Rules:
        return _Rules(toward=self.toward[rows], anchor=self.anchor[rows], height=self.height[rows])


def arrange(prompts: Sequence[Prompt], rng: np.random.Generator) -> Scenes:
    """Draw one scene per prompt: sizes and positions are random, colours left open are the usual ones."""
    slots = [_slots(prompt) for prompt in prompts]
    kind = _table(slots, lambda thing: NAMES.index(thing.name), -1)
    word = _table(slots, lambda thing: LEXICON.index(thing.text) if thing.text else 0, 0)
    color = _table(slots, _color, 0)
    size = _sizes(kind, word, rng)
    center = _place(kind, size, _rules(prompts, slots), rng)
    return Scenes(kind=kind, color=color, word=word, size=size, center=center)


def _slots(prompt: Prompt) -> list[Clause]:
    return [clause for clause in prompt.include for _ in range(clause.count)]


def _color(thing: Clause) -> int:
    """The colour asked for, or else the usual one; words have the ink's and any number will do."""
    return _COLOR_NAMES.index(thing.color or USUAL[thing.name]) if thing.name != WORD else 0


def _table(
    slots: Sequence[Sequence[Clause]], value: Callable[[Clause], int], empty: int
) -> Int[np.ndarray, "B S"]:
    table = np.full((len(slots), SLOTS), empty)
    for row, things in zip(table, slots, strict=True):
        row[: len(things)] = [value(thing) for thing in things]
    return table


def _rules(prompts: Sequence[Prompt], slots: Sequence[Sequence[Clause]]) -> _Rules:
    shape = (len(prompts), SLOTS)
    toward, anchor = np.zeros((*shape, 2), np.float32), np.zeros(shape, int)
    height = np.broadcast_to(np.array((0, SIZE), np.float32), (*shape, 2)).copy()
    for row, (prompt, things) in enumerate(zip(prompts, slots, strict=True)):
        for slot, (relation, clause) in (
            (s, thing.position) for s, thing in enumerate(things) if thing.position
        ):
            if relation in PLACES:
                height[row, slot] = PLACES[relation]
            else:
                toward[row, slot], anchor[row, slot] = (
                    RELATIONS[relation],
                    things.index(prompt.include[clause]),
                )
    return _Rules(toward=toward, anchor=anchor, height=height)


def _sizes(
    kind: Int[np.ndarray, "B S"], word: Int[np.ndarray, "B S"], rng: np.random.Generator
) -> Float[np.ndarray, "B S 2"]:
    low, high = EXTENTS[(kind >= 0).sum(1) - 1].T[:, :, None]
    square = (2 * np.rint((low + (high - low) * rng.random(kind.shape, np.float32)) / 2))[..., None]
    size: Float[np.ndarray, "B S 2"] = np.where(
        (kind == NAMES.index(WORD))[..., None], glyph_sizes()[word], square
    )
    return size


def _place(
    kind: Int[np.ndarray, "B S"],
    size: Float[np.ndarray, "B S 2"],
    rules: _Rules,
    rng: np.random.Generator,
) -> Float[np.ndarray, "B S 2"]:
    """Rejection sampling: propose random layouts until every scene has one that obeys its rules."""
    center = np.zeros_like(size)
    pending = np.arange(len(kind))
    while len(pending):
        proposal = _propose(kind[pending], size[pending], rng)
        valid = _apart(kind[pending], size[pending], proposal) & _obeys(rules[pending], proposal)
        found = valid.any(1)
        center[pending[found]] = proposal[found, valid[found].argmax(1)]
        pending = pending[~found]
    return center


def _propose(
    kind: Int[np.ndarray, "B S"], size: Float[np.ndarray, "B S 2"], rng: np.random.Generator
) -> Float[np.ndarray, "B tries S 2"]:
    """Centres on the lattice and inside the margins; a word is in the middle, its top on the lattice."""
    is_word = (kind == NAMES.index(WORD))[..., None]
    offset = np.where(is_word, size / 2, 0)  # from the lattice's point to the centre
    first = np.ceil((MARGIN + size / 2 - offset) / LATTICE)
    last = np.floor((SIZE - MARGIN - size / 2 - offset) / LATTICE)
    chosen = rng.random((len(kind), TRIES, SLOTS, 2), np.float32)
    center = (
        LATTICE * (first + np.floor(chosen.transpose(1, 0, 2, 3) * (last - first + 1))) + offset
    )
    center[..., 0] = np.where(
        is_word[..., 0], np.floor(SIZE / 2 - offset[..., 0]) + offset[..., 0], center[..., 0]
    )
    placed: Float[np.ndarray, "B tries S 2"] = center.swapaxes(0, 1).astype(np.float32)
    return placed


def _apart(
    kind: Int[np.ndarray, "B S"],
    size: Float[np.ndarray, "B S 2"],
    center: Float[np.ndarray, "B tries S 2"],
) -> Bool[np.ndarray, "B tries"]:
    """Whether the boxes of all pairs of things are `GAP` apart."""
    first, second = np.triu_indices(SLOTS, 1)
    distance = np.abs(center[:, :, first] - center[:, :, second])
    needed = (size[:, first] + size[:, second]) / 2 + GAP
    absent = (kind[:, first] < 0) | (kind[:, second] < 0)
    apart: Bool[np.ndarray, "B tries"] = (
        (distance >= needed[:, None]).any(-1) | absent[:, None]
    ).all(-1)
    return apart


def _obeys(rules: _Rules, center: Float[np.ndarray, "B tries S 2"]) -> Bool[np.ndarray, "B tries"]:
    """Whether things stand as their relations say, clearly if they are also apart, and words at their places."""
    toward = rules.toward[:, None]
    offset = center - np.take_along_axis(center, rules.anchor[:, None, :, None], 2)
    across = np.abs(offset * toward[..., ::-1]).sum(-1)
    related = across <= SLANT * (offset * toward).sum(-1)
    low, high = np.moveaxis(rules.height, -1, 0)[:, :, None]
    obeyed: Bool[np.ndarray, "B tries"] = (
        related & (center[..., 1] >= low) & (center[..., 1] <= high)
    ).all(-1)
    return obeyed
