"""Are the objects there that a prompt names: how many, of which colour, and where (GenEval, arXiv:2310.11513)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.reward import Scorer, scored
from grpo_guard.types import Clause, Prompt, Rewards, component
from grpo_guard.world.checker import Detection

Detect = Callable[[Float[Tensor, "B 3 H W"]], Sequence[Sequence[Detection]]]

_RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}  # y points down
_MARGIN = 0.1  # slack of a relation, as a share of the two extents


@runtime_checkable
class Detector(Protocol):
    """What finds the objects of a picture, with their colours."""

    def load(self, device: torch.device) -> Detect:
        """Load weights; the result lists what is in each image in [0, 1]."""


@component
class GenEval:
    """The mean over a prompt's demands: number `max(0, 1 - |n - k| / k)`, colour alike, relation and absence 0 or 1.

    `strict: true` gives 1 only where every demand is met, with exact numbers. The part `<name>_accuracy` is the
    benchmark's own: of each kind the most certain objects asked for must do, more may be there unless excluded.
    """

    detector: Detector
    strict: bool
    name: str = "geneval"

    def accepts(self, prompt: Prompt) -> bool:
        """Prompts about objects; spelling is not judged here, nor any relation that GenEval has not."""
        clauses = prompt.include
        relations = {clause.position[0] for clause in clauses if clause.position}
        return bool(clauses) and not any(clause.text for clause in clauses) and relations <= _RELATIONS.keys()

    def load(self, device: torch.device) -> Scorer:
        """The scorer, with the detector on the device."""
        detect, judge = self.detector.load(device), strict if self.strict else graded

        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            pairs = zip(prompts, detect(images), strict=True)
            values = [(judge(prompt, seen), accuracy(prompt, seen)) for prompt, seen in pairs]
            total, right = torch.tensor(values).T
            return scored(images, **{self.name: total, f"{self.name}_accuracy": right})

        return score


def graded(prompt: Prompt, seen: Sequence[Detection]) -> float:
    """The mean of all terms."""
    terms = _terms(prompt.include, seen) + _absences(prompt.exclude, seen)
    return sum(terms) / len(terms)


def strict(prompt: Prompt, seen: Sequence[Detection]) -> float:
    """1 where all terms are, else 0."""
    return float(min(_terms(prompt.include, seen) + _absences(prompt.exclude, seen)) == 1)


def accuracy(prompt: Prompt, seen: Sequence[Detection]) -> float:
    """1 where the most certain objects, as many as asked for, are right and nothing excluded is there, else 0."""
    return float(min(_terms(prompt.include, _surest(prompt.include, seen)) + _absences(prompt.exclude, seen)) == 1)


def relates(relation: str, a: Detection, b: Detection) -> bool:
    """GenEval's rule: the offset of the centres, less a margin, points within 60 degrees of the relation."""
    (ax, ay), (bx, by), (ux, uy) = _center(a), _center(b), _RELATIONS[relation]
    width, height = (_extent(a, axis) + _extent(b, axis) for axis in (0, 1))
    along = (ax - bx) * ux + (ay - by) * uy - _MARGIN * (width * abs(ux) + height * abs(uy))
    return along > 0.5 * math.hypot(ax - bx, ay - by)


def _terms(clauses: Sequence[Clause], seen: Sequence[Detection]) -> list[float]:
    return [term for clause in clauses for term in _clause_terms(clause, clauses, seen)]


def _clause_terms(clause: Clause, clauses: Sequence[Clause], seen: Sequence[Detection]) -> list[float]:
    """The terms of one clause; clauses about one kind of object ("a red cup and a blue cup") share their numbers."""
    alike = [other for other in clauses if other.name == clause.name]
    terms = [_share(_count(clause.name, None, seen), sum(other.count for other in alike))]
    if clause.color:
        asked = sum(other.count for other in alike if other.color == clause.color)
        terms.append(_share(_count(clause.name, clause.color, seen), asked))
    if clause.position:
        relation, index = clause.position
        terms.append(_stand(relation, _meant(clause, seen), _meant(clauses[index], seen)))
    return terms


def _absences(clauses: Sequence[Clause], seen: Sequence[Detection]) -> list[float]:
    """Per excluded clause, whether fewer than its number are there."""
    return [float(_count(clause.name, clause.color, seen) < clause.count) for clause in clauses]


def _share(found: int, asked: int) -> float:
    return max(0.0, 1 - abs(found - asked) / asked)


def _count(name: str, color: str | None, seen: Sequence[Detection]) -> int:
    return sum(thing.name == name and color in (None, thing.color) for thing in seen)


def _meant(clause: Clause, seen: Sequence[Detection]) -> list[Detection]:
    """The objects a clause speaks of: of its name and colour, or of its name where none has its colour."""
    named = [thing for thing in seen if thing.name == clause.name]
    return [thing for thing in named if thing.color == clause.color] or named


def _stand(relation: str, things: Sequence[Detection], anchors: Sequence[Detection]) -> float:
    """1 where both are there and all of the ones stand so to all of the others, else 0."""
    pairs = [(a, b) for a in things for b in anchors if a is not b]
    return float(bool(pairs) and all(relates(relation, a, b) for a, b in pairs))


def _surest(clauses: Sequence[Clause], seen: Sequence[Detection]) -> list[Detection]:
    """Of each name asked for, no more objects than asked for: those with the highest scores."""
    asked: Counter[str] = Counter()
    for clause in clauses:
        asked[clause.name] += clause.count
    ranked = sorted(seen, key=lambda thing: -thing.score)
    return [thing for name, count in asked.items() for thing in [t for t in ranked if t.name == name][:count]]


def _center(thing: Detection) -> tuple[float, float]:
    x0, y0, x1, y1 = thing.box
    return (x0 + x1) / 2, (y0 + y1) / 2


def _extent(thing: Detection, axis: int) -> float:
    return thing.box[2 + axis] - thing.box[axis]
