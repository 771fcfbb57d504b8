"""Reads GenEval's prompts: JSON lines that name the objects to show (arXiv:2310.11513)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_guard.data.prompts import load_json, require_unicode
from grpo_guard.schema import require
from grpo_guard.types import Clause, Prompt

GENEVAL_RELATIONS = ("left of", "right of", "above", "below")
_EXCLUDED = ("class", "count")
_INCLUDED = (*_EXCLUDED, "color", "position")


def parse_geneval(line: str) -> Prompt:
    """Parse a line `{"tag", "include": [clause, ...], "exclude"?: [clause, ...], "prompt"}`.

    A clause is `{"class", "count", "color"?, "position"?: [relation, index]}`. The index is that of
    another clause of `include`, counted from 0. Excluded clauses have only a class and a count: the
    picture must not show that many of the objects, or more. Raises ConfigError for any other line.
    """
    entry = load_json(line)
    _check_keys("", entry, ("tag", "include", "exclude", "prompt"))
    include = _clauses("include", _value("", entry, "include"), _INCLUDED)
    require(bool(include), "include=[] names no object; give at least one")
    return Prompt(
        text=_text("", entry, "prompt"),
        tag=_text("", entry, "tag"),
        include=include,
        exclude=_clauses("exclude", entry.get("exclude", []), _EXCLUDED),
    )


def _clauses(key: str, entries: Any, keys: Sequence[str]) -> tuple[Clause, ...]:
    kind = type(entries).__name__
    require(isinstance(entries, list), f"{key} is a {kind}; give a list of clauses")
    indices = range(len(entries))
    return tuple(
        _clause(f"{key}[{i}].", entry, keys, others=[j for j in indices if j != i])
        for i, entry in enumerate(entries)
    )


def _clause(where: str, entry: Any, keys: Sequence[str], *, others: Sequence[int]) -> Clause:
    """Parse a clause; its position may refer to one of the others."""
    _check_keys(where, entry, keys)
    count = _value(where, entry, "count")
    # `type(...) is int` because True is an instance of int.
    require(
        type(count) is int and count > 0,
        f"{where}count={count!r} is not a number of objects; give 1 or more",
    )
    name = _text(where, entry, "class")
    color = _text(where, entry, "color") if "color" in entry else None
    position = None
    if "position" in entry:
        position = _position(f"{where}position", entry["position"], others)
    return Clause(name=name, count=count, color=color, position=position)


def _position(where: str, value: Any, others: Sequence[int]) -> tuple[str, int]:
    require(
        isinstance(value, list) and len(value) == 2,
        f'{where}={value!r} is not a pair; give, for example, ["left of", 0]',
    )
    relation, index = value
    require(
        relation in GENEVAL_RELATIONS,
        f"{where} has the relation {relation!r}; choose from {', '.join(GENEVAL_RELATIONS)}",
    )
    require(
        type(index) is int and index in others,
        f"{where} refers to clause {index!r};"
        " give the number of another clause of include, counted from 0",
    )
    return relation, index


def _check_keys(where: str, entry: Any, keys: Sequence[str]) -> None:
    what = where.rstrip(".") or "the line"
    require(
        isinstance(entry, dict),
        f"{what} is a {type(entry).__name__}; give an object with {', '.join(keys)}",
    )
    unknown = " ".join(", ".join(f"{where}{key}" for key in entry if key not in keys).split())
    require(not unknown, f"{unknown} is unknown; the known keys are {', '.join(keys)}")


def _text(where: str, entry: Mapping[str, Any], key: str) -> str:
    value = _value(where, entry, key)
    is_text = isinstance(value, str) and bool(value.strip())
    require(is_text, f"{where}{key}={value!r} is not a text; give a string that is not blank")
    return require_unicode(str(value).strip())


def _value(where: str, entry: Mapping[str, Any], key: str) -> Any:
    require(key in entry, f"{where}{key} is missing; add it")
    return entry[key]
