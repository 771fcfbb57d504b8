"""The choices of conf/: their composed settings, and what each of them is."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

from grpo_guard.console import cli
from grpo_guard.experiment import Experiment

CONF = Path(cli.CONF)
PLAIN = ("experiment", "published", "preset")
"""Groups whose choices set keys of other groups; they have no keys of their own."""
HIDDEN = ("hydra",)
"""Groups that configure Hydra."""

Node = Mapping[str, Any]
"""The settings of a choice, with `_target_`."""


class MissingWords(Exception):
    """A key or a choice has no description."""


@functools.cache
def compose_choices() -> dict[str, dict[str, Node]]:
    """Return the settings of every choice by group, in the order of an experiment's fields.

    One composition holds all of them, each under a package of its own.
    """
    names: dict[str, list[str]] = defaultdict(list)
    for file in sorted(CONF.rglob("*.yaml")):
        group = str(file.parent.relative_to(CONF))
        if file.parent != CONF and group.split("/")[0] not in (*PLAIN, *HIDDEN):
            names[group].append(file.stem)
    overrides = [
        f"+{group}@{group.replace('/', '__')}.{name}={name}"
        for group, choices in names.items()
        for name in choices
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        resolved: Any = OmegaConf.to_container(compose(overrides=overrides), resolve=True)
    order = [field.name for field in dataclasses.fields(Experiment)]
    groups = sorted(names, key=lambda group: (order.index(group.split("/")[0]), group))
    return {group: resolved[group.replace("/", "__")] for group in groups}


def describe_choice(file: Path) -> str:
    """Return the comment at the top of a YAML file, or what its target's docstring says.

    Commands and Hydra's own header are left out. Raises MissingWords.
    """
    text = file.read_text(encoding="utf-8")
    comment = "".join(re.findall(r"\A(?:#.*\n)*", text))
    lines = [line.lstrip("# ") for line in comment.splitlines()]
    words = " ".join(line for line in lines if not re.match("@package|python |torchrun ", line))
    target = (yaml.safe_load(text) or {}).get("_target_")
    if not words and target:
        words = (inspect.getdoc(get_object(target)) or "").split("\n\n")[0]
    if not words:
        raise MissingWords(f"{file.relative_to(CONF)} has no comment")
    return " ".join(words.split())


def find_choice(node: Node) -> str | None:
    """Return the name of the choice that describes a nested component, if any."""
    equal = [
        name
        for choices in compose_choices().values()
        for name, choice in choices.items()
        if choice == node
    ]
    return equal[0] if equal else None


def is_choice(node: Node) -> bool:
    """Return whether a group of conf/ has choices of this component's class."""
    return any(
        choice.get("_target_") == node["_target_"]
        for choices in compose_choices().values()
        for choice in choices.values()
    )
