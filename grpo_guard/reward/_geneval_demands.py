"""What a prompt demands of an image, and how far the detected objects meet each demand.

Each clause of `prompt.include` demands a number of objects, and may demand their colour and their
position. Each clause of `prompt.exclude` demands that fewer than its number are there.

- Number and colour: `max(0, 1 - |n - k| / k)`, where k objects are demanded and n are detected.
- Position: 1 if every object of the clause stands so to every object it refers to, else 0.
- Exclusion: 1 or 0.

Clauses about the same kind of object share their numbers: "a red cup and a blue cup" demands two
cups, of which one is red and one is blue.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from grpo_guard.schema import record
from grpo_guard.types import Clause, Prompt
from grpo_guard.world.detection import Detection

DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Unit vector (x, y) of each relation; y points down, as in an image."""
_MARGIN = 0.1  # GenEval's: the share of the two extents by which centres must differ at least
_COS_60 = 0.5


@record
class Demand:
    """One demand of a prompt, and how far an image meets it."""

    text: str
    """What is demanded, such as "2 red cup"."""
    observation: str
    """What was detected, such as "1 red, 1 blue, 1 missing"."""
    value: float
    """How far the demand is met, in [0, 1]."""


def check_demands(prompt: Prompt, detections: Sequence[Detection]) -> list[Demand]:
    """Return every demand of a prompt: of its clauses in their order, then of its exclusions."""
    return check_included(prompt.include, detections) + check_excluded(prompt.exclude, detections)


def check_included(clauses: Sequence[Clause], detections: Sequence[Detection]) -> list[Demand]:
    """Return the demands of clauses about what must be there."""
    return [demand for clause in clauses for demand in _check_clause(clause, clauses, detections)]


def check_excluded(clauses: Sequence[Clause], detections: Sequence[Detection]) -> list[Demand]:
    """Return the demands of clauses about what must not be there: fewer than their number."""
    demands = []
    for clause in clauses:
        count = _count(clause.name, clause.color, detections)
        demands.append(
            Demand(
                text=f"fewer than {clause.count} {_describe(clause)}",
                observation=str(count),
                value=float(count < clause.count),
            )
        )
    return demands


def relates(relation: str, a: Detection, b: Detection) -> bool:
    """Return whether a stands in a relation to b by GenEval's rule (arXiv:2310.11513).

    The offset of the two centres, shortened by a margin, must point within 60 degrees of the
    relation's direction.
    """
    ux, uy = DIRECTIONS[relation]
    ax, ay = _box_center(a)
    bx, by = _box_center(b)
    width = _extent(a, axis=0) + _extent(b, axis=0)
    height = _extent(a, axis=1) + _extent(b, axis=1)
    along = (ax - bx) * ux + (ay - by) * uy - _MARGIN * (width * abs(ux) + height * abs(uy))
    return along > _COS_60 * math.hypot(ax - bx, ay - by)


def _check_clause(
    clause: Clause, clauses: Sequence[Clause], detections: Sequence[Detection]
) -> list[Demand]:
    same_name = [other for other in clauses if other.name == clause.name]
    demands = [_check_number(clause.name, same_name, detections)]
    if clause.color:
        same_color = [other for other in same_name if other.color == clause.color]
        demands.append(_check_color(clause.name, clause.color, same_color, detections))
    if clause.position:
        relation, anchor = clause.position
        demands.append(_check_position(clause, relation, clauses[anchor], detections))
    return demands


def _check_number(
    name: str, same_name: Sequence[Clause], detections: Sequence[Detection]
) -> Demand:
    wanted = sum(clause.count for clause in same_name)
    count = _count(name, None, detections)
    return Demand(
        text=f"{wanted} {name}",
        observation=f"{count}{_difference(count, wanted)}",
        value=_closeness(count, wanted),
    )


def _check_color(
    name: str, color: str, same_color: Sequence[Clause], detections: Sequence[Detection]
) -> Demand:
    wanted = sum(clause.count for clause in same_color)
    count = _count(name, color, detections)
    colors = [detection.color for detection in detections if detection.name == name]
    return Demand(
        text=f"{wanted} {color} {name}",
        observation=_tally(colors) + _difference(count, wanted),
        value=_closeness(count, wanted),
    )


def _check_position(
    clause: Clause, relation: str, anchor: Clause, detections: Sequence[Detection]
) -> Demand:
    subjects = _referents(clause, detections)
    anchors = _referents(anchor, detections)
    # both clauses may name the same kind of object, and nothing stands beside itself
    pairs = [(a, b) for a in subjects for b in anchors if a is not b]
    met = bool(pairs) and all(relates(relation, a, b) for a, b in pairs)
    if not subjects or not anchors:
        absent = [(clause, subjects), (anchor, anchors)]
        observation = " and ".join(f"no {c.name}" for c, objects in absent if not objects)
    elif pairs:
        observation = ", ".join(dict.fromkeys(_describe_relation(a, b) for a, b in pairs))
    else:
        observation = f"no other {anchor.name}"
    return Demand(
        text=f"{_describe(clause)} {relation} {_describe(anchor)}",
        observation=observation,
        value=float(met),
    )


def _closeness(count: int, wanted: int) -> float:
    return max(0.0, 1 - abs(count - wanted) / wanted)


def _count(name: str, color: str | None, detections: Sequence[Detection]) -> int:
    return sum(
        detection.name == name and color in (None, detection.color) for detection in detections
    )


def _referents(clause: Clause, detections: Sequence[Detection]) -> list[Detection]:
    """Return the objects a clause refers to: of its name and colour, or else just of its name."""
    named = [detection for detection in detections if detection.name == clause.name]
    return [detection for detection in named if detection.color == clause.color] or named


def _describe(clause: Clause) -> str:
    return f"{clause.color} {clause.name}" if clause.color else clause.name


def _difference(count: int, wanted: int) -> str:
    """Return how the two differ, such as ", 1 missing"; empty if they are equal."""
    if count == wanted:
        return ""
    return f", {abs(count - wanted)} {'missing' if count < wanted else 'too many'}"


def _tally(words: Iterable[str]) -> str:
    """Count words, such as "2 red, 1 blue"."""
    return ", ".join(f"{count} {word}" for word, count in Counter(words).most_common()) or "none"


def _describe_relation(a: Detection, b: Detection) -> str:
    """Return where a stands to b, such as "left of and above"."""
    relations = [relation for relation in DIRECTIONS if relates(relation, a, b)]
    return " and ".join(relations) or "no clear side"


def _box_center(detection: Detection) -> tuple[float, float]:
    x0, y0, x1, y1 = detection.box
    return (x0 + x1) / 2, (y0 + y1) / 2


def _extent(detection: Detection, axis: int) -> float:
    return detection.box[2 + axis] - detection.box[axis]
