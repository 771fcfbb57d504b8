"""The grammar of captions: every prompt of the world, and which combinations are held out of training."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain, permutations, product

import numpy as np

from grpo_guard.types import Clause, Prompt
from grpo_guard.world.scene import COLORS, LEXICON, OPPOSITE, PLACES, RELATIONS, SHAPES, WORD

FAMILIES = ("shapes", "words", "mixtures")
NUMBERS = ("a", "two", "three", "four")
HELD_OUT_PERCENT = 18
WEIGHTS = {"word": 2.0}  # spelling is the hardest thing to learn

# A prompt and the combination it teaches; no combination ("") means it always belongs to training.
Entry = tuple[Prompt, str]


def prompts(families: Sequence[str] = FAMILIES, *, heldout: bool) -> tuple[Prompt, ...]:
    """All prompts of some families whose combination is held out (or is not), in a fixed order."""
    return tuple(chain.from_iterable(_split(family, heldout) for family in families))


def vocabulary() -> tuple[str, ...]:
    """Every token of every caption, sorted: lower-case words and the quotation mark."""
    texts = (prompt.text for heldout in (False, True) for prompt in prompts(heldout=heldout))
    return tuple(sorted({token for text in texts for token in tokens(text)}))


def tokens(text: str) -> list[str]:
    """A caption's words and punctuation marks, in order."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def draw(rng: np.random.Generator, count: int, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Sample with replacement: a tag first (see `WEIGHTS`), then one of its prompts."""
    tagged: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        tagged.setdefault(prompt.tag, []).append(prompt)
    groups = list(tagged.values())
    weights = np.array([WEIGHTS.get(tag, 1.0) for tag in tagged])
    chosen = rng.choice(len(groups), size=count, p=weights / weights.sum())
    ranks = rng.random(count)
    return [groups[g][int(rank * len(groups[g]))] for g, rank in zip(chosen, ranks, strict=True)]


@cache
def _split(family: str, heldout: bool) -> tuple[Prompt, ...]:
    return tuple(
        prompt for prompt, combination in _GRAMMAR[family]() if _is_held_out(combination) == heldout
    )


def _is_held_out(combination: str) -> bool:
    digest = hashlib.sha256(combination.encode()).digest()
    return bool(combination) and int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def _shapes() -> Iterator[Entry]:
    """GenEval's six tags (arXiv:2310.11513)."""
    things = [Clause(name=shape) for shape in SHAPES]
    colored = [Clause(name=shape, color=color) for shape, color in product(SHAPES, COLORS)]
    yield from ((_prompt("single_object", thing), "") for thing in things)
    yield from ((_prompt("colors", thing), "") for thing in colored)
    yield from _counting()
    for tag, pool in (("two_object", things), ("color_attr", colored)):
        yield from ((_prompt(tag, a, b), _pair(a, b)) for a, b in permutations(pool, 2))
    for a, b in permutations(things, 2):
        yield from ((_related(a, relation, b), _ordered(a, relation, b)) for relation in RELATIONS)
    for a, b in permutations(colored, 2):
        yield from ((_related(a, relation, b), _pair(a, b)) for relation in RELATIONS)


def _counting() -> Iterator[Entry]:
    for shape, count in product(SHAPES, (2, 3, 4)):
        yield _prompt("counting", Clause(name=shape, count=count)), ""
        for color in COLORS:
            clause = Clause(name=shape, count=count, color=color)
            yield _prompt("counting", clause), _phrase(clause)


def _words() -> Iterator[Entry]:
    for text in LEXICON:
        yield _prompt("word", Clause(name=WORD, text=text)), ""
        for place in PLACES:
            yield (
                _prompt("word", Clause(name=WORD, text=text, position=(place, 0))),
                f"{text} {place}",
            )


def _mixtures() -> Iterator[Entry]:
    colored = [Clause(name=shape, color=color) for shape, color in product(SHAPES, COLORS)]
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
    if clause.name == WORD:
        place = f" {clause.position[0]}" if clause.position else ""
        return f'the word "{clause.text}"{place}'
    noun = clause.name if clause.count == 1 else _plural(clause.name)
    return " ".join(filter(None, (NUMBERS[clause.count - 1], clause.color, noun)))


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def _pair(a: Clause, b: Clause) -> str:
    """The combination of two things, whatever their order, number and relation."""
    return " + ".join(sorted((_phrase(a), _phrase(b))))


def _ordered(a: Clause, relation: str, b: Clause) -> str:
    """The combination of two things and a relation; "a above b" is "b below a"."""
    if a.name > b.name:
        a, relation, b = b, OPPOSITE[relation], a
    return f"{_phrase(a)} {relation} {_phrase(b)}"


_GRAMMAR = {"shapes": _shapes, "words": _words, "mixtures": _mixtures}
