"""Records and components: frozen values with typed fields, and the two errors that end a run."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, cast, dataclass_transform, get_type_hints

from beartype import BeartypeConf
from beartype.door import is_bearable

C = TypeVar("C", bound=type)

# YAML writes 1 where a float is meant, so an int is accepted as a float (PEP 484's numeric tower).
_NUMERIC_TOWER = BeartypeConf(is_pep484_tower=True)


class ConfigError(ValueError):
    """A setting cannot be used. The message is one line with the key, the value and the remedy."""


class RunError(RuntimeError):
    """A run cannot continue. The message is one line with the reason and the remedy."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: C) -> C:
    """Make a class a frozen value that flows between the parts of a run."""
    made: Any = dataclasses.dataclass(frozen=True, kw_only=True, eq=False)(cls)
    return cast(C, made)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def component(cls: C) -> C:
    """Make a class a frozen part of an experiment whose constructor arguments are its settings.

    The types of the arguments are checked when a component is made; a class checks its own ranges
    in `__post_init__`. Both raise ConfigError.
    """
    check_ranges = getattr(cls, "__post_init__", lambda self: None)

    def __post_init__(self: Any) -> None:
        _check_types(self)
        check_ranges(self)

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    made: Any = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    return cast(C, made)


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def _check_types(instance: Any) -> None:
    hints = get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if not is_bearable(value, hints[field.name], conf=_NUMERIC_TOWER):
            raise ConfigError(
                f"{field.name}={value!r} is a {type(value).__name__};"
                f" give a value of type {_describe_type(hints[field.name])}"
            )


def _describe_type(hint: Any) -> str:
    words = str(hint)
    for noise in ("typing.", "<class '", "'>"):
        words = words.replace(noise, "")
    return words
