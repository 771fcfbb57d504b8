"""Are the objects there that a prompt names: how many, of which colour, and where (GenEval, arXiv:2310.11513)."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grpo_guard.reward import Scorer, scored
from grpo_guard.types import Clause, Prompt, Rewards, component, record, require
from grpo_guard.world.checker import Detection

Detect = Callable[[Float[Tensor, "B 3 H W"]], Sequence[Sequence[Detection]]]
Color = Callable[[Float[Tensor, "B 3 H W"], Sequence[tuple[int, Detection]]], Sequence[str]]
Look = Callable[[Float[Tensor, "B 3 H W"], Sequence[Prompt]], Sequence[Sequence[Detection]]]

_RELATIONS = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}  # y points down
_MARGIN = 0.1  # slack of a relation, as a share of the two extents


@runtime_checkable
class Detector(Protocol):
    """What finds the objects of a picture, with their colours where it can tell them."""

    def load(self, device: torch.device) -> Detect:
        """Load weights; the result lists what is in each image in [0, 1]."""


@runtime_checkable
class Limited(Protocol):
    """A detector that says which objects it can find; prompts about others are not accepted."""

    def knows(self, name: str) -> bool:
        """Whether objects of that name can be found."""


@runtime_checkable
class Colors(Protocol):
    """What tells the colour of an object that was found."""

    def knows(self, color: str) -> bool:
        """Whether a colour can be told."""

    def load(self, device: torch.device) -> Color:
        """Load weights; the result names the colour of each (row of its image, thing), of images in [0, 1]."""


@record
class Segment(Detection):
    """A thing whose outline is known: a box of whole px, and `mask`, which of its pixels belong to the thing."""

    mask: Bool[Tensor, "h w"]


@component
class DetectorColors:
    """The colours that the detector itself has told."""

    def knows(self, color: str) -> bool:
        """Any may be asked for."""
        return True

    def load(self, device: torch.device) -> Color:
        """Repeats what is known."""
        return lambda images, things: [thing.color for _, thing in things]


@component
class GenEval:
    """The mean over a prompt's demands: number `max(0, 1 - |n - k| / k)`, colour alike, relation and absence 0 or 1.

    `strict: true` gives 1 only where every demand is met, with exact numbers. The part `<name>_accuracy` is the
    benchmark's own: of each kind the most certain objects asked for must do, more may be there unless excluded.
    In prompts with the tag "counting" only things with a score above `counting` are there. `colors` is asked about
    those things alone for whose kind the prompt has a colour. Its notes are the lines of `explain`.
    """

    detector: Detector
    strict: bool
    name: str = "geneval"
    colors: Colors = DetectorColors()
    counting: float = 0.0

    def __post_init__(self) -> None:
        require(
            0 <= self.counting < 1,
            f"counting={self.counting} is outside [0, 1); the benchmark's is 0.9",
        )

    compares: ClassVar[bool] = False

    def accepts(self, prompt: Prompt) -> bool:
        """Prompts about objects and colours that are known; not about spelling, or a relation that GenEval has not."""
        clauses = prompt.include
        relations = {clause.position[0] for clause in clauses if clause.position}
        known = all(map(self._knows, (*clauses, *prompt.exclude)))
        return (
            bool(clauses)
            and known
            and not any(clause.text for clause in clauses)
            and relations <= _RELATIONS.keys()
        )

    def load(self, device: torch.device) -> Scorer:
        """The scorer, with the detector on the device."""
        look, judge = self.look(device), strict if self.strict else graded

        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            pairs = list(zip(prompts, look(images, prompts), strict=True))
            total, right = torch.tensor(
                [(judge(prompt, seen), accuracy(prompt, seen)) for prompt, seen in pairs]
            ).T
            found = scored(images, **{self.name: total, f"{self.name}_accuracy": right})
            return dataclasses.replace(
                found, notes=tuple(tuple(explain(prompt, seen)) for prompt, seen in pairs)
            )

        return score

    def look(self, device: torch.device) -> Look:
        """What is judged, and what `explain` is to be told: the things in each image, as its prompt lets them count."""
        detect, color = self.detector.load(device), self.colors.load(device)

        def see(
            images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]
        ) -> list[list[Detection]]:
            pairs = zip(prompts, detect(images), strict=True)
            return _colored(
                color, images, prompts, [self._certain(prompt, seen) for prompt, seen in pairs]
            )

        return see

    def _knows(self, clause: Clause) -> bool:
        named = not isinstance(self.detector, Limited) or self.detector.knows(clause.name)
        return named and (clause.color is None or self.colors.knows(clause.color))

    def _certain(self, prompt: Prompt, seen: Sequence[Detection]) -> list[Detection]:
        if prompt.tag != "counting":
            return list(seen)
        return [thing for thing in seen if thing.score > self.counting]


def graded(prompt: Prompt, seen: Sequence[Detection]) -> float:
    """The mean of all terms."""
    facts = _facts(prompt, seen)
    return sum(fact.value for fact in facts) / len(facts)


def strict(prompt: Prompt, seen: Sequence[Detection]) -> float:
    """1 where all terms are, else 0."""
    return float(all(fact.value == 1 for fact in _facts(prompt, seen)))


def accuracy(prompt: Prompt, seen: Sequence[Detection]) -> float:
    """1 where the most certain objects, as many as asked for, are right and nothing excluded is there, else 0."""
    facts = _demands(prompt.include, _surest(prompt.include, seen)) + _absences(
        prompt.exclude, seen
    )
    return float(all(fact.value == 1 for fact in facts))


def explain(prompt: Prompt, seen: Sequence[Detection]) -> list[str]:
    """A line for each demand: how far it is met in [0, 1], what it asks, what was seen, what is missing or too much."""
    lines = [f"{fact.value:.2f} {fact.asked}: saw {fact.saw}" for fact in _facts(prompt, seen)]
    return list(dict.fromkeys(lines))


def relates(relation: str, a: Detection, b: Detection) -> bool:
    """GenEval's rule: the offset of the centres, less a margin, points within 60 degrees of the relation."""
    (ax, ay), (bx, by), (ux, uy) = _center(a), _center(b), _RELATIONS[relation]
    width, height = (_extent(a, axis) + _extent(b, axis) for axis in (0, 1))
    along = (ax - bx) * ux + (ay - by) * uy - _MARGIN * (width * abs(ux) + height * abs(uy))
    return along > 0.5 * math.hypot(ax - bx, ay - by)


@record
class _Fact:
    """What a demand asks, what was seen of it, and how far that meets it, in [0, 1]."""

    asked: str
    saw: str
    value: float


def _facts(prompt: Prompt, seen: Sequence[Detection]) -> list[_Fact]:
    return _demands(prompt.include, seen) + _absences(prompt.exclude, seen)


def _demands(clauses: Sequence[Clause], seen: Sequence[Detection]) -> list[_Fact]:
    return [fact for clause in clauses for fact in _clause_facts(clause, clauses, seen)]


def _clause_facts(
    clause: Clause, clauses: Sequence[Clause], seen: Sequence[Detection]
) -> list[_Fact]:
    """The terms of one clause; clauses about one kind of object ("a red cup and a blue cup") share their numbers."""
    alike = [other for other in clauses if other.name == clause.name]
    facts = [_number(clause.name, alike, seen)]
    if clause.color:
        facts.append(
            _hue(clause.name, [other for other in alike if other.color == clause.color], seen)
        )
    if clause.position:
        relation, index = clause.position
        facts.append(_stand(relation, clause, clauses[index], seen))
    return facts


def _number(name: str, alike: Sequence[Clause], seen: Sequence[Detection]) -> _Fact:
    asked, found = sum(clause.count for clause in alike), _count(name, None, seen)
    return _Fact(
        asked=f"{asked} {name}", saw=f"{found}{_off(found, asked)}", value=_share(found, asked)
    )


def _hue(name: str, alike: Sequence[Clause], seen: Sequence[Detection]) -> _Fact:
    """Of clauses about one kind of object and one colour."""
    asked, color = sum(clause.count for clause in alike), alike[0].color
    found = _count(name, color, seen)
    saw = _tally([thing.color for thing in seen if thing.name == name]) + _off(found, asked)
    return _Fact(asked=f"{asked} {color} {name}", saw=saw, value=_share(found, asked))


def _stand(relation: str, clause: Clause, anchor: Clause, seen: Sequence[Detection]) -> _Fact:
    """1 where both are there and all of the ones stand so to all of the others, else 0."""
    things, anchors = _meant(clause, seen), _meant(anchor, seen)
    pairs = [(a, b) for a in things for b in anchors if a is not b]
    met = bool(pairs) and all(relates(relation, a, b) for a, b in pairs)
    missing = [
        f"no {other.name}" for other, found in ((clause, things), (anchor, anchors)) if not found
    ]
    saw = (
        " and ".join(missing)
        or ", ".join(dict.fromkeys(map(_side, pairs)))
        or f"no other {anchor.name}"
    )
    return _Fact(asked=f"{_called(clause)} {relation} {_called(anchor)}", saw=saw, value=float(met))


def _absences(clauses: Sequence[Clause], seen: Sequence[Detection]) -> list[_Fact]:
    """Per excluded clause, whether fewer than its number are there."""
    found = [_count(clause.name, clause.color, seen) for clause in clauses]
    return [
        _Fact(
            asked=f"fewer than {clause.count} {_called(clause)}",
            saw=str(there),
            value=float(there < clause.count),
        )
        for clause, there in zip(clauses, found, strict=True)
    ]


def _share(found: int, asked: int) -> float:
    return max(0.0, 1 - abs(found - asked) / asked)


def _count(name: str, color: str | None, seen: Sequence[Detection]) -> int:
    return sum(thing.name == name and color in (None, thing.color) for thing in seen)


def _called(clause: Clause) -> str:
    return f"{clause.color} {clause.name}" if clause.color else clause.name


def _off(found: int, asked: int) -> str:
    """Such as ", 1 missing"."""
    return (
        ""
        if found == asked
        else f", {abs(found - asked)} {'missing' if found < asked else 'too many'}"
    )


def _tally(words: Iterable[str]) -> str:
    """Such as "2 red, 1 blue"."""
    return ", ".join(f"{count} {word}" for word, count in Counter(words).most_common()) or "none"


def _side(pair: tuple[Detection, Detection]) -> str:
    """Such as "left of and above"."""
    return (
        " and ".join(relation for relation in _RELATIONS if relates(relation, *pair))
        or "no clear side"
    )


def _meant(clause: Clause, seen: Sequence[Detection]) -> list[Detection]:
    """The objects a clause speaks of: of its name and colour, or of its name where none has its colour."""
    named = [thing for thing in seen if thing.name == clause.name]
    return [thing for thing in named if thing.color == clause.color] or named


def _colored(
    color: Color,
    images: Float[Tensor, "B 3 H W"],
    prompts: Sequence[Prompt],
    seen: Sequence[Sequence[Detection]],
) -> list[list[Detection]]:
    """The same things, with colours told anew of those whose kind a clause of their prompt gives a colour."""
    kinds = [{c.name for c in (*prompt.include, *prompt.exclude) if c.color} for prompt in prompts]
    asked = [
        (row, thing)
        for row, things in enumerate(seen)
        for thing in things
        if thing.name in kinds[row]
    ]
    told = dict(zip(asked, color(images, asked), strict=True))
    return [
        [dataclasses.replace(thing, color=told.get((row, thing), thing.color)) for thing in things]
        for row, things in enumerate(seen)
    ]


def _surest(clauses: Sequence[Clause], seen: Sequence[Detection]) -> list[Detection]:
    """Of each name asked for, no more objects than asked for: those with the highest scores."""
    asked: Counter[str] = Counter()
    for clause in clauses:
        asked[clause.name] += clause.count
    ranked = sorted(seen, key=lambda thing: -thing.score)
    return [
        thing
        for name, count in asked.items()
        for thing in [t for t in ranked if t.name == name][:count]
    ]


def _center(thing: Detection) -> tuple[float, float]:
    x0, y0, x1, y1 = thing.box
    return (x0 + x1) / 2, (y0 + y1) / 2


def _extent(thing: Detection, axis: int) -> float:
    return thing.box[2 + axis] - thing.box[axis]
