"""Whether a value can stand where a component or a function is wanted."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin

from beartype.door import is_bearable

PACKAGE = __name__.partition(".")[0]


def is_instance(value: Any, hint: Any) -> bool:
    """Return whether a value is a component or a function of the type.

    The protocol of a noun, such as grpo_guard.kl.Kl, wants a choice of this noun or a class that
    no noun of the package defines: two nouns may have the same members.
    """
    function = value.func if isinstance(value, functools.partial) else value
    if hasattr(function, "is_component") and inspect.isclass(function):
        return False  # a component whose settings have _partial_=true, so that it was never made
    if get_origin(hint) is Callable:
        wanted = get_args(hint)[0]
        return callable(value) and (wanted is ... or takes(value, wanted))
    return is_bearable(value, hint) and not _is_of_other_noun(type(value), hint)


def takes(function: Callable[..., Any], wanted: list[Any]) -> bool:
    """Return whether a function can be called with arguments of these types, as far as is known."""
    try:
        signature = inspect.signature(function)
        signature.bind(*wanted)
    except TypeError:
        return False
    except ValueError:
        return True  # a function in C that does not say what it takes
    annotations = [parameter.annotation for parameter in signature.parameters.values()]
    return all(
        not dataclasses.is_dataclass(part)
        or annotation in (part, getattr(part, "__name__", ""), inspect.Parameter.empty)
        for part, annotation in zip(wanted, annotations, strict=False)
    )


def _is_of_other_noun(cls: type, hint: Any) -> bool:
    """Return whether a class belongs to another noun than the protocol that is wanted."""
    wanted = getattr(hint, "__module__", "")
    is_protocol_of_noun = getattr(hint, "_is_protocol", False) and wanted.count(".") == 1
    package, _, place = cls.__module__.partition(".")
    if not is_protocol_of_noun or {package, wanted.partition(".")[0]} != {PACKAGE}:
        return False
    own = f"{PACKAGE}.{place.partition('.')[0]}"
    return own != wanted and _is_noun(own)


@functools.cache
def _is_noun(package: str) -> bool:
    """Return whether a package defines the protocol of its choices; nothing is imported."""
    file = Path(__file__).parent.joinpath(*package.split(".")[1:], "__init__.py")
    return file.is_file() and "(Protocol):" in file.read_text(encoding="utf-8")
