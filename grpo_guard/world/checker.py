"""The exact judge of the world's pictures: do they match their prompts, and are they clean?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.schema import record
from grpo_guard.types import Clause, Prompt
from grpo_guard.world.detection import Detection, detect
from grpo_guard.world.inks import CHUNK, INKS, project
from grpo_guard.world.scene import BACKGROUND, PLACES, RELATIONS

_CLOSE = 0.1
"""Slack of GenEval's relations, as a share of the sum of the two sizes."""
_NEAR = 6.0
"""Px by which a word may miss its place."""
_SOILED = 0.5
"""Mean RGB distance to the nearest colour of the world at which cleanliness reaches 0."""


@record
class PictureCheck:
    """How well pictures match their prompts; every value is in [0, 1]."""

    facts: Float[Tensor, " B"]
    """Share of the prompt's facts that hold."""
    exact: Float[Tensor, " B"]
    """1 if all facts hold and nothing else is in the picture, else 0."""
    clean: Float[Tensor, " B"]
    """How close the pixels are to the colours of the world; 1 is a perfect match."""
    wrong: tuple[tuple[str, ...], ...]
    """What is wrong with each picture, such as "no red circle"; empty if it is exact."""


@record
class Fact:
    """Something that a prompt says of its picture."""

    holds: bool
    """Whether the picture shows it."""
    objection: str
    """What to say if it does not."""


def check_pictures(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> PictureCheck:
    """Compare pictures in [0, 1] with their prompts."""
    pictures = detect(images)
    facts = [_facts(prompt, things) for prompt, things in zip(prompts, pictures, strict=True)]
    counts = [sum(clause.count for clause in prompt.include) for prompt in prompts]
    wrong = [
        _list_objections(held, len(things) - count)
        for held, things, count in zip(facts, pictures, counts, strict=True)
    ]
    exact = [not objections for objections in wrong]
    share = [sum(fact.holds for fact in held) / len(held) if held else 1.0 for held in facts]
    clean = [_cleanliness(chunk) for chunk in images.float().cpu().split(CHUNK)]
    return PictureCheck(
        facts=torch.tensor(share),
        exact=torch.tensor(exact).float(),
        clean=torch.cat(clean),
        wrong=tuple(wrong),
    )


def _list_objections(facts: Sequence[Fact], surplus: int) -> tuple[str, ...]:
    """Return what is wrong: facts that do not hold, else another number of things in all."""
    wrong = tuple(dict.fromkeys(fact.objection for fact in facts if not fact.holds))
    if wrong or not surplus:
        return wrong
    return (
        f"{abs(surplus)} thing{'s' * (abs(surplus) > 1)} too {'many' if surplus > 0 else 'few'}",
    )


def _facts(prompt: Prompt, things: Sequence[Detection]) -> list[Fact]:
    """Return the facts of a prompt: number, colour, spelling and relation of each clause."""
    facts: list[Fact] = []
    for clause in prompt.include:
        facts += _clause_facts(clause, prompt.include, things)
    return facts


def _clause_facts(
    clause: Clause, clauses: Sequence[Clause], things: Sequence[Detection]
) -> list[Fact]:
    named = [thing for thing in things if thing.name == clause.name]
    alike = [other for other in clauses if other.name == clause.name]
    phrase = _phrase(clause)
    missing = f"no {phrase}"
    wanted = sum(other.count for other in alike)
    miscounted = f"{clause.name}: {len(named)} instead of {wanted}" if named else missing
    facts = [Fact(holds=len(named) == wanted, objection=miscounted)]
    if clause.color:
        wanted = sum(other.count for other in alike if other.color == clause.color)
        colored = sum(thing.color == clause.color for thing in named)
        miscolored = f"{phrase}: {colored} instead of {wanted}" if colored else missing
        facts.append(Fact(holds=colored == wanted, objection=miscolored))
    if clause.text:
        is_written = any(thing.text == clause.text for thing in named)
        facts.append(Fact(holds=is_written, objection=f'"{clause.text}" is not written'))
    if clause.position:
        relation, index = clause.position
        anchors = _referents(clauses[index], things)
        stands = _stands(relation, _referents(clause, things), anchors)
        place = relation if relation in PLACES else f"{relation} {_phrase(clauses[index])}"
        facts.append(Fact(holds=stands, objection=f"{phrase} is not {place}"))
    return facts


def _phrase(clause: Clause) -> str:
    """Return what a clause speaks of, such as "red circle"."""
    return f"{clause.color} {clause.name}" if clause.color else clause.name


def _referents(clause: Clause, things: Sequence[Detection]) -> list[Detection]:
    """Return the things that a clause speaks of.

    They have its name and colour, or only its name if none has its colour: a wrong colour is a
    fact of its own and does not also spoil the relation.
    """
    named = [thing for thing in things if thing.name == clause.name]
    return [thing for thing in named if thing.color == clause.color] or named


def _stands(relation: str, things: Sequence[Detection], anchors: Sequence[Detection]) -> bool:
    if relation in PLACES:
        low, high = PLACES[relation]
        return any(low - _NEAR <= _center(thing)[1] <= high + _NEAR for thing in things)
    return any(_relates(relation, a, b) for a in things for b in anchors if a is not b)


def _relates(relation: str, a: Detection, b: Detection) -> bool:
    """Apply GenEval's rule (arXiv:2310.11513).

    The offset, less a slack, must point within 60 degrees of the relation's direction.
    """
    # A gold that shared this with the GenEval reward would share its mistakes.
    (ax, ay), (bx, by), (ux, uy) = _center(a), _center(b), RELATIONS[relation]
    dx, dy = ax - bx, ay - by
    axis = 0 if ux else 1
    extents = [thing.box[2 + axis] - thing.box[axis] for thing in (a, b)]
    return dx * ux + dy * uy - _CLOSE * sum(extents) > 0.5 * math.hypot(dx, dy)


def _center(thing: Detection) -> tuple[float, float]:
    x0, y0, x1, y1 = thing.box
    return (x0 + x1) / 2, (y0 + y1) / 2


def _cleanliness(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return 1 minus the scaled mean RGB distance to the nearest ink or grey of the background."""
    grey = images.mean(1, keepdim=True).clamp(*BACKGROUND)
    to_grey = (images - grey).square().sum(1)
    to_inks = INKS.square().sum(1)[:, None, None] - 2 * project(images, INKS)
    nearest = torch.minimum(to_grey, to_inks.amin(1) + images.square().sum(1))
    distance = nearest.clamp_min(0).sqrt().mean((1, 2))
    return (1 - distance / _SOILED).clamp_min(0)
