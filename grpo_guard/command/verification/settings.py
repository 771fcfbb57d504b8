"""Names of components in the settings of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_guard.schema import ConfigError


def last_name(node: Mapping[str, Any]) -> str:
    """Return the name of the class or function that a part of the settings makes."""
    return str(node["_target_"]).rpartition(".")[2]


def choose(key: str, choices: Mapping[str, Any], name: str) -> Any:
    """Return one of the choices; raises ConfigError if none has the name."""
    if name not in choices:
        raise ConfigError(
            f"{key}={name} is not known to this command, which knows {', '.join(choices)};"
            " verify a run with one of them"
        )
    return choices[name]
