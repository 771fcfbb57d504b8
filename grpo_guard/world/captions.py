"""The grammar of captions: every prompt of the world, and which of them are held out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain, permutations, product

import numpy as np

from grpo_guard.types import Clause, Prompt
from grpo_guard.world.scene import (
    LEXICON,
    OPPOSITE,
    PLACES,
    RELATIONS,
    SHAPE_COLORS,
    SHAPES,
    WORD,
)

FAMILIES = ("shapes", "words", "mixtures")
NUMBERS = ("a", "two", "three", "four")
HELD_OUT_PERCENT = 18
"""Percentage of combinations that are held out."""
WEIGHTS = {"word": 2.0}
"""Relative frequency of a tag in `draw_captions`, 1 if absent; spelling is the hardest to learn."""

Entry = tuple[Prompt, str]
"""A prompt and the combination that it teaches, such as "a red circle + a blue square".

Prompts are held out by combination. A prompt without one ("") always belongs to training.
"""


def all_prompts(families: Sequence[str] = FAMILIES, *, heldout: bool) -> tuple[Prompt, ...]:
    """Return the held-out prompts, or the training prompts, of some families in a fixed order."""
    return tuple(chain.from_iterable(_family_prompts(family, heldout) for family in families))


def describe_first(prompt: Prompt) -> str:
    """Return a caption that leaves out all but the first clause, as captions on the web do."""
    return _phrase(prompt.include[0])


def vocabulary() -> tuple[str, ...]:
    """Return every token of every caption, sorted: lower-case words and the quotation mark."""
    texts = (prompt.text for heldout in (False, True) for prompt in all_prompts(heldout=heldout))
    return tuple(sorted({token for text in texts for token in tokens(text)}))


def tokens(text: str) -> list[str]:
    """Return the words and punctuation marks of a caption, in order and in lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def draw_captions(rng: np.random.Generator, count: int, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Sample prompts with replacement: first a tag by its weight, then one of its prompts."""
    tagged: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        tagged.setdefault(prompt.tag, []).append(prompt)
    groups = list(tagged.values())
    weights = np.array([WEIGHTS.get(tag, 1.0) for tag in tagged])
    chosen = rng.choice(len(groups), size=count, p=weights / weights.sum())
    ranks = rng.random(count)
    return [groups[g][int(rank * len(groups[g]))] for g, rank in zip(chosen, ranks, strict=True)]


@cache
def _family_prompts(family: str, heldout: bool) -> tuple[Prompt, ...]:
    return tuple(
        prompt for prompt, combination in _GRAMMAR[family]() if _is_held_out(combination) == heldout
    )


def _is_held_out(combination: str) -> bool:
    """Decide by a hash of the text, so that the split depends on nothing else."""
    digest = hashlib.sha256(combination.encode()).digest()
    return bool(combination) and int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def _shapes() -> Iterator[Entry]:
    """Yield captions for the six tags of GenEval (arXiv:2310.11513)."""
    things = [Clause(name=shape) for shape in SHAPES]
    colored = [Clause(name=shape, color=color) for shape, color in product(SHAPES, SHAPE_COLORS)]
    for thing in things:
        yield _prompt("single_object", thing), ""
    for thing in colored:
        yield _prompt("colors", thing), ""
    yield from _counting()
    for tag, pool in (("two_object", things), ("color_attr", colored)):
        for a, b in permutations(pool, 2):
            yield _prompt(tag, a, b), _pair(a, b)
    for (a, b), relation in product(permutations(things, 2), RELATIONS):
        yield _related(a, relation, b), _ordered(a, relation, b)
    for (a, b), relation in product(permutations(colored, 2), RELATIONS):
        yield _related(a, relation, b), _pair(a, b)


def _counting() -> Iterator[Entry]:
    for shape, count in product(SHAPES, (2, 3, 4)):
        yield _prompt("counting", Clause(name=shape, count=count)), ""
        for color in SHAPE_COLORS:
            clause = Clause(name=shape, count=count, color=color)
            yield _prompt("counting", clause), _phrase(clause)


def _words() -> Iterator[Entry]:
    for text in LEXICON:
        yield _prompt("word", Clause(name=WORD, text=text)), ""
        for place in PLACES:
            clause = Clause(name=WORD, text=text, position=(place, 0))
            yield _prompt("word", clause), f"{text} {place}"


def _mixtures() -> Iterator[Entry]:
    """Yield captions of a shape and a word, and of several equal shapes and another one."""
    colored = [Clause(name=shape, color=color) for shape, color in product(SHAPES, SHAPE_COLORS)]
    for thing, text, relation in product(colored, LEXICON, ("above", "below")):
        word = Clause(name=WORD, text=text)
        yield _related(thing, relation, word, tag="mixture"), _pair(thing, word)
    for a, b, count in product(colored, colored, (2, 3)):
        if a.name != b.name:
            many = Clause(name=a.name, count=count, color=a.color)
            yield _prompt("mixture", many, b), _pair(a, b)


def _prompt(tag: str, *clauses: Clause) -> Prompt:
    return Prompt(text=" and ".join(map(_phrase, clauses)), tag=tag, include=clauses)


def _related(a: Clause, relation: str, b: Clause, *, tag: str = "position") -> Prompt:
    placed = Clause(name=a.name, color=a.color, position=(relation, 1))
    return Prompt(text=f"{_phrase(a)} {relation} {_phrase(b)}", tag=tag, include=(placed, b))


def _phrase(clause: Clause) -> str:
    """Return the words for a clause: "two red circles", 'the word "stop" at the top'."""
    if clause.name == WORD:
        place = f" {clause.position[0]}" if clause.position else ""
        return f'the word "{clause.text}"{place}'
    noun = clause.name if clause.count == 1 else _plural(clause.name)
    return " ".join(filter(None, (NUMBERS[clause.count - 1], clause.color, noun)))


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def _pair(a: Clause, b: Clause) -> str:
    """Name the combination of two things, regardless of their order, number and relation."""
    return " + ".join(sorted((_phrase(a), _phrase(b))))


def _ordered(a: Clause, relation: str, b: Clause) -> str:
    """Name the combination of two things and a relation; "a above b" equals "b below a"."""
    if a.name > b.name:
        a, relation, b = b, OPPOSITE[relation], a
    return f"{_phrase(a)} {relation} {_phrase(b)}"


_GRAMMAR = {"shapes": _shapes, "words": _words, "mixtures": _mixtures}
