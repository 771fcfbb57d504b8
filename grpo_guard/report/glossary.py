"""What scores mean, in the words of the rewards that give them: their `meanings`."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.machinery import PathFinder
from itertools import accumulate
from pathlib import Path
from typing import Any

from grpo_guard.report import curves
from grpo_guard.report.runs import Run
from grpo_guard.schema import record

UNKNOWN = "its reward does not say what it measures"


@record
class Meaning:
    """A score and what it means."""

    name: str
    """Name of the score on the page."""
    role: str
    """ "proxy", "gold", or "" for a statistic of pictures."""
    text: str
    """What it means."""


def explain_scores(runs: Sequence[Run]) -> tuple[Meaning, ...]:
    """Return what the proxies and golds of some runs mean, the golds first."""
    proxies = {key.removeprefix("eval/proxy/") for run in runs for key in run.keys("eval/proxy/")}
    roles = dict.fromkeys(curves.gold_names(runs), "gold") | dict.fromkeys(sorted(proxies), "proxy")
    return _explain(runs, roles)


def explain_statistics(runs: Sequence[Run]) -> tuple[Meaning, ...]:
    """Return what the picture statistics of some runs mean."""
    meanings = _explain(runs, dict.fromkeys(curves.statistic_names(runs), ""))
    return tuple(replace(each, name=each.name.replace("_", " ")) for each in meanings)


def _explain(runs: Sequence[Run], roles: Mapping[str, str]) -> tuple[Meaning, ...]:
    known = [read_meanings(run.config) for run in runs]
    meanings = []
    for name, role in roles.items():
        texts = dict.fromkeys(each[name] for each in known if name in each)
        meanings.append(Meaning(name=name, role=role, text=" or ".join(texts) or UNKNOWN))
    return tuple(meanings)


def read_meanings(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the meaning of each score of a run by its name.

    The classes of its rewards are read from their source, because importing them would import
    torch, and the file of a user may no longer be there. A class without `meanings` is left out.
    """
    evaluation = config.get("eval")
    golds = evaluation.get("gold") if isinstance(evaluation, dict) else None
    meanings: dict[str, str] = {}
    for part in _list_parts([config.get("reward"), golds, config.get("watch")]):
        meanings |= fill_meanings(_read_class(str(part["_target_"])), part)
    return meanings


def fill_meanings(meanings: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, str]:
    """Replace each setting in braces, such as {name}, by its value, in names and in texts."""

    def fill(text: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda match: str(settings.get(match[1], match[0])), text)

    return {fill(name): fill(text) for name, text in meanings.items()}


def _list_parts(node: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the settings of every component within some settings."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if isinstance(node, dict) and "_target_" in node:
        yield node
    for child in children:
        yield from _list_parts(child)


@cache
def _read_class(target: str) -> Mapping[str, str]:
    """Return the `meanings` of a class from its source; nothing if there are none."""
    module, _, name = target.rpartition(".")
    path = _find_source(module)
    if path is None:
        return {}
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, RecursionError):
        return {}
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    statements = [statement for node in classes for statement in node.body]
    return next(filter(None, map(_read_meanings, statements)), {})


def _read_meanings(statement: ast.stmt) -> dict[str, str]:
    """Return the value of a statement that sets `meanings` to a dictionary of texts."""
    if isinstance(statement, ast.AnnAssign):
        names = [ast.unparse(statement.target)]
    elif isinstance(statement, ast.Assign):
        names = [ast.unparse(target) for target in statement.targets]
    else:
        return {}
    if "meanings" not in names or not isinstance(statement.value, ast.Dict):
        return {}
    try:
        value = ast.literal_eval(statement.value)
    except ValueError:
        return {}
    return {str(name): str(text) for name, text in value.items()}


def _find_source(module: str) -> Path | None:
    """Return the file of a module without importing it; None if it is not found."""
    places: Sequence[str] | None = [*sys.path, os.getcwd()]
    spec = None
    if not all(name.isidentifier() for name in module.split(".")):
        return None
    for name in accumulate(module.split("."), "{}.{}".format):
        loaded = sys.modules.get(name)
        spec = loaded.__spec__ if loaded else PathFinder.find_spec(name, places)
        if spec is None:
            return None
        places = spec.submodule_search_locations or []
    path = Path(spec.origin) if spec and spec.origin else None
    return path if path and path.is_file() else None
