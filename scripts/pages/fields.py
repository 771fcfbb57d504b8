"""The settings of a component: each key with its type, its default and its meaning."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.utils import get_object

from pages.choices import MissingWords, Node, compose_choices, find_choice, is_choice
from pages.kinds import describe_kind, find_hints

PARAMETERS = {
    "model": "A shipped asset, a folder, or a hub id.",
    "architecture": "Name of the architecture in open_clip.",
    "file": "Name of the file with the weights.",
    "preprocess": "How pictures become the input of the model.",
    "lr": "Learning rate.",
    "betas": "Decay of AdamW's averages of the gradient and of its square.",
    "weight_decay": "Share of a weight, times the learning rate, that a step takes away.",
}
"""Meanings of the parameters of functions, which have no docstring for each."""
LONGEST_DEFAULT = 160
"""Longer defaults, such as the questions to a model, are not repeated on the page."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One key, in one choice."""

    key: str
    """The key, as on the command line."""
    kind: str
    """Its type and range in words."""
    default: str
    """Its value in this choice, as Markdown."""
    meaning: str
    """What it means."""


def list_settings(group: str, choice: str) -> list[Setting]:
    """Return the settings of a choice, those of its parts too; raises MissingWords."""
    return list(walk(group.replace("/", "."), compose_choices()[group][choice]))


def walk(prefix: str, node: Node) -> Iterator[Setting]:
    """Yield the settings of a component or function, in the order of its definition."""
    target = get_object(node["_target_"])
    if getattr(target, "is_component", False):
        yield from describe_fields(target, node, f"{prefix}.")
        return
    hints = find_hints(target)
    for name, value in node.items():
        if not name.startswith("_"):
            yield describe_setting(f"{prefix}.{name}", hints.get(name, Any), value, PARAMETERS)
            yield from _walk_parts(f"{prefix}.{name}", value)


def describe_fields(component: type, node: Node, prefix: str) -> Iterator[Setting]:
    """Yield the settings of a class's fields; a field that `node` leaves out has its default."""
    hints, meanings = find_hints(component), read_field_docstrings(component)
    for field in dataclasses.fields(component):
        value = node.get(field.name, field.default)
        yield describe_setting(f"{prefix}{field.name}", hints[field.name], value, meanings)
        yield from _walk_parts(f"{prefix}{field.name}", value)


def describe_setting(key: str, hint: Any, value: Any, meanings: Mapping[str, str]) -> Setting:
    """Describe a key; raises MissingWords if it has no meaning."""
    meaning = meanings.get(key.rpartition(".")[2])
    if not meaning:
        raise MissingWords(f"{key} has no docstring")
    return Setting(key, describe_kind(hint, value), show_default(value), meaning)


def _walk_parts(key: str, value: Any) -> Iterator[Setting]:
    """Yield the settings of a nested component, or of a mapping of them, that is no choice."""
    if not isinstance(value, dict):
        return
    if "_target_" in value:
        if find_choice(value) is None:
            yield from walk(key, value)
        return
    for name, part in value.items():
        if isinstance(part, dict) and "_target_" in part and not is_choice(part):
            yield from walk(f"{key}.{name}", part)


def show_default(value: Any) -> str:
    """Return a value as one writes it in YAML; a component by its choice or its class."""
    if value == "???" or value is dataclasses.MISSING:
        return "must be given"
    if isinstance(value, dict) and "_target_" in value:
        return f"`{find_choice(value) or value['_target_'].rpartition('.')[2]}`"
    if isinstance(value, dict):
        return f"`{', '.join(map(str, value))}`"
    if dataclasses.is_dataclass(value):
        return f"`{type(value).__name__}`"
    words = _show_scalar(value)
    return f"`{words}`" if len(words) <= LONGEST_DEFAULT else "in the YAML file"


def _show_scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_show_scalar, value))}]"
    return str(value)


@functools.cache
def read_field_docstrings(component: type) -> Mapping[str, str]:
    """Return the docstring line below each field of a class, also of those that it inherits."""
    meanings: dict[str, str] = {}
    for base in reversed(component.__mro__[:-1]):
        if base.__module__.startswith("grpo_guard"):
            meanings |= _read_own_docstrings(base)
    return meanings


def _read_own_docstrings(base: type) -> dict[str, str]:
    (node,) = ast.parse(inspect.cleandoc(inspect.getsource(base))).body
    pairs = itertools.pairwise(node.body) if isinstance(node, ast.ClassDef) else ()
    return {
        ast.unparse(statement.target): " ".join(str(following.value.value).split())
        for statement, following in pairs
        if isinstance(statement, ast.AnnAssign)
        and isinstance(following, ast.Expr)
        and isinstance(following.value, ast.Constant)
    }
