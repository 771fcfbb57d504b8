"""Describes the type and range of a setting in words, from the annotation of its field."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from grpo_guard.schema import MAY_BE_INFINITE, AtMost, Rule

PLAIN = {float: "number", int: "whole number", str: "text", bool: "true or false"}
FAULTS = {
    "is not positive": "more than 0",
    "is negative": "0 or more",
    "has a slash": "without a slash",
    "is empty": "at least one",
}


def find_hints(target: Any) -> Mapping[str, Any]:
    """Return the annotations of a class or function; none if its library hides them."""
    try:
        return get_type_hints(target, include_extras=True)
    except (NameError, TypeError):
        return {}


def describe_kind(hint: Any, value: Any) -> str:
    """Return the type in words, with its range; `value` helps where there is no annotation."""
    if hint is Any or hint is inspect.Parameter.empty:
        return PLAIN.get(type(value), "list of numbers" if isinstance(value, list) else "value")
    if get_origin(hint) is Annotated:
        ranges = [words for note in hint.__metadata__ if (words := _describe_note(note))]
        return ", ".join([describe_kind(hint.__origin__, value), *ranges])
    if get_origin(hint) in (Union, types.UnionType):
        return _describe_union(hint, value)
    return _describe_plain(hint, value)


def _describe_union(hint: Any, value: Any) -> str:
    members = [member for member in get_args(hint) if member is not type(None)]
    words = [describe_kind(member, value) for member in members]
    if len(members) < len(get_args(hint)):
        words.append("null")
    return " or ".join(words)


def _describe_plain(hint: Any, value: Any) -> str:
    if hint in PLAIN:
        return PLAIN[hint]
    origin = get_origin(hint)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint)).replace("True", "true")
    if origin is Mapping:
        return f"{describe_kind(get_args(hint)[1], None)} by name"
    if origin in (list, tuple, Sequence):
        return f"list of {describe_kind(get_args(hint)[0], None)}s"
    if origin is Callable or inspect.isfunction(hint):
        return "function"
    return "component"


def _describe_note(note: Any) -> str:
    if isinstance(note, AtMost):
        return f"at most {note.limit:,}"
    if note == MAY_BE_INFINITE:
        return "or `.inf`"
    if not isinstance(note, Rule):
        return ""
    if note.fault.startswith("is outside "):
        return f"in {note.fault.removeprefix('is outside ')}"
    least = re.match(r"give (\d+( px)? or more)", note.remedy)
    return FAULTS.get(note.fault, least[1] if least else "")
