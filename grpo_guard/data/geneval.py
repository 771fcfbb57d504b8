"""GenEval's prompts: JSON lines that say which objects a picture must show (arXiv:2310.11513)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_guard.types import Clause, ConfigError, Prompt, require

RELATIONS = ("left of", "right of", "above", "below")
_EXCLUDED = ("class", "count")
_INCLUDED = (*_EXCLUDED, "color", "position")


def parse(line: str) -> Prompt:
    """A line `{"tag", "include": [clause, ...], "exclude"?: [clause, ...], "prompt"}`.

    A clause is `{"class", "count", "color"?, "position"?: [relation, index]}`, the index that of another clause of
    `include`, counted from 0. Excluded clauses have class and count: that many objects, or more, must not be there.
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = str(error).split(":")[0]
        raise ConfigError(
            f"no JSON ({reason}); give an object per line, as GenEval's metadata do"
        ) from error
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
    require(
        isinstance(entries, list), f"{key} is a {type(entries).__name__}; give a list of clauses"
    )
    others = [[j for j in range(len(entries)) if j != i] for i in range(len(entries))]
    return tuple(_clause(f"{key}[{i}].", entry, keys, others[i]) for i, entry in enumerate(entries))


def _clause(where: str, entry: Any, keys: Sequence[str], others: Sequence[int]) -> Clause:
    """A clause; its position may refer to one of the others."""
    _check_keys(where, entry, keys)
    count = _value(where, entry, "count")
    require(
        type(count) is int and count > 0,
        f"{where}count={count!r} is no number of objects; give 1 or more",
    )
    return Clause(
        name=_text(where, entry, "class"),
        count=count,
        color=_text(where, entry, "color") if "color" in entry else None,
        position=_position(f"{where}position", entry["position"], others)
        if "position" in entry
        else None,
    )


def _position(where: str, value: Any, others: Sequence[int]) -> tuple[str, int]:
    require(
        isinstance(value, list) and len(value) == 2,
        f'{where}={value!r} is no pair; give such as ["left of", 0]',
    )
    relation, index = value
    require(
        relation in RELATIONS,
        f"{where} has the relation {relation!r}; choose from {', '.join(RELATIONS)}",
    )
    require(
        type(index) is int and index in others,
        f"{where} refers to clause {index!r}; give the number of another clause of include, counted from 0",
    )
    return relation, index


def _check_keys(where: str, entry: Any, keys: Sequence[str]) -> None:
    what = where.rstrip(".") or "the line"
    require(
        isinstance(entry, dict),
        f"{what} is a {type(entry).__name__}; give an object with {', '.join(keys)}",
    )
    unknown = ", ".join(f"{where}{key}" for key in entry if key not in keys)
    require(not unknown, f"{unknown} is unknown; known are {', '.join(keys)}")


def _text(where: str, entry: Mapping[str, Any], key: str) -> str:
    value = _value(where, entry, key)
    require(
        isinstance(value, str) and bool(value.strip()),
        f"{where}{key}={value!r} is no text; give some",
    )
    return str(value).strip()


def _value(where: str, entry: Mapping[str, Any], key: str) -> Any:
    require(key in entry, f"{where}{key} is missing; add it")
    return entry[key]
