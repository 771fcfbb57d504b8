"""Records and components: frozen values with typed fields, and the two errors that end a run.

The fields of a component are its settings. Their annotations hold all that is checked of one
setting: its type and its range. The types with ranges below are Annotated types, so that mypy sees
a plain float, int or str.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from grpo_guard.instances import is_instance

C = TypeVar("C", bound=type)

SECRETS = ("token", "api_key", "password", "secret")
"""Ends of keys whose values are never printed."""
_SECRET_VALUE = re.compile(
    rf"(\w*(?:{'|'.join(SECRETS)})=)(\[[^]]*\]|\{{[^}}]*\}}|'[^']*'|\"[^\"]*\"|[^\s;]+)",
    re.IGNORECASE,
)
_URL_WITH_NAME = re.compile(r"(\w+://)[^/\s'\"\]]*@")
LARGEST_FLOAT = 1e9
"""Largest absolute value of any float: more is a slip of the keyboard, or overflows later."""
LARGEST_INT = 10**12
"""Largest absolute value of any int; seeds and sizes in bytes need many digits."""
LATENT_BYTES = 4096
"""Size of the smallest latent, of an image of 64 px in float32: a lower bound for any model."""


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

    The types and ranges of the arguments are checked when a component is made; a class checks in
    `__post_init__` how its settings fit each other. Both raise ConfigError.
    """
    check_together = getattr(cls, "__post_init__", lambda self: None)

    def __post_init__(self: Any) -> None:
        _check_fields(self)
        check_together(self)

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    cls.is_component = True  # type: ignore[attr-defined]
    made: Any = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    return cast(C, made)


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


@dataclasses.dataclass(frozen=True)
class Rule:
    """A range for an Annotated type."""

    holds: Callable[[Any], bool]
    """Returns whether a value is in the range."""
    fault: str
    """What a value outside the range is, such as "is negative"."""
    remedy: str
    """What to give instead."""


@dataclasses.dataclass(frozen=True)
class Advice:
    """A better remedy for one field than that of its rule."""

    remedy: str
    """What to give instead."""


@dataclasses.dataclass(frozen=True)
class AtMost:
    """An upper bound that nobody reaches in earnest: more would hang or not fit into memory."""

    limit: int
    """The largest value."""
    unit_bytes: int = 0
    """Memory that each unit needs at least; 0: not known."""

    def explain(self, value: int) -> str:
        """Say what is wrong with a larger value."""
        if not self.unit_bytes:
            return f"is more than {self.limit}; give less"
        need = value * self.unit_bytes // 10**9
        return f"needs {need} GB of memory or more; give at most {self.limit}"


Positive = Annotated[float, Rule(lambda x: x > 0, "is not positive", "give more than 0")]
NonNegative = Annotated[float, Rule(lambda x: x >= 0, "is negative", "give 0 or more")]
Share = Annotated[float, Rule(lambda x: 0 <= x <= 1, "is outside [0, 1]", "give a share")]
Fraction = Annotated[float, Rule(lambda x: 0 < x < 1, "is outside (0, 1)", "give a fraction")]
Threshold = Annotated[float, Rule(lambda x: 0 <= x < 1, "is outside [0, 1)", "give less than 1")]
PositiveInt = Annotated[int, Rule(lambda x: x > 0, "is not positive", "give 1 or more")]
NonNegativeInt = Annotated[int, Rule(lambda x: x >= 0, "is negative", "give 0 or more")]
Name = Annotated[
    str,
    Rule(lambda x: "/" not in x, "has a slash", "give a name without one"),
    Rule(lambda x: x.isprintable(), "has a character that cannot be printed", "leave it out"),
]
"""A part of the names of metrics, whose parts are separated by slashes."""

MAY_BE_INFINITE = "may be infinite"
"""Annotates a float for which inf has a meaning."""
NOT_EMPTY = Rule(lambda x: len(x) > 0, "is empty", "give at least one")
"""For lists."""

_ALWAYS: dict[type, tuple[Rule, ...]] = {
    float: (
        Rule(lambda x: type(x) is int or math.isfinite(x), "is not finite", "give a number"),
        Rule(
            lambda x: abs(x) <= LARGEST_FLOAT,
            "is too large",
            f"give a number up to {LARGEST_FLOAT:g}",
        ),
    ),
    int: (
        Rule(
            lambda x: abs(x) <= LARGEST_INT, "is too large", f"give a number up to {LARGEST_INT:g}"
        ),
    ),
    str: (
        Rule(lambda x: bool(x.strip()), "is empty", "give a text"),
        Rule(lambda x: "\0" not in x, "has a zero byte", "leave it out"),
    ),
    bool: (),
}
"""What holds for every setting of these types, whatever its annotation adds."""


def _check_fields(instance: Any) -> None:
    cls: Any = type(instance)
    hints = _hints(cls)
    for field in dataclasses.fields(cls):
        check_value(field.name, getattr(instance, field.name), hints[field.name])


@functools.cache
def _hints(annotated: Any) -> dict[str, Any]:
    return get_type_hints(annotated, include_extras=True)


def check_value(name: str, value: Any, hint: Any, notes: Sequence[Any] = ()) -> None:
    """Raise ConfigError unless a value fits a type and the notes that annotate it."""
    origin = get_origin(hint)
    if origin is Annotated:
        check_value(name, value, hint.__origin__, (*hint.__metadata__, *notes))
    elif origin in (Union, types.UnionType):
        _check_union(name, value, hint, notes)
    elif hint in _ALWAYS:
        # YAML writes 1 where a float is meant, but true is no number.
        fits = type(value) is hint or (hint is float and type(value) is int)
        _require_kind(name, value, hint, fits, ())
        _check_rules(name, value, notes)
        if MAY_BE_INFINITE not in notes or value != math.inf:
            _check_rules(name, value, _ALWAYS[hint])
    elif origin is Literal:
        choices = get_args(hint)
        fits = any(type(value) is type(choice) and value == choice for choice in choices)
        listed = ", ".join(map(str, choices))
        require(fits, f"{_equate(name, value)} is unknown; choose from {listed}")
    elif origin in (list, Sequence, Mapping):
        _check_container(name, value, hint, notes)
    else:
        _require_kind(name, value, hint, is_instance(value, hint), notes)
        _check_rules(name, value, notes)
        if isinstance(value, functools.partial):
            _check_partial(name, value)


def _check_union(name: str, value: Any, hint: Any, notes: Sequence[Any]) -> None:
    """Check a value that may be null, or of one of several types."""
    members = [member for member in get_args(hint) if member is not type(None)]
    if value is None and len(members) < len(get_args(hint)):
        return
    fitting = [member for member in members if type(value) is member]
    if len(members) > 1:
        _require_kind(name, value, hint, bool(fitting), notes)
    check_value(name, value, [*fitting, *members][0], notes)


def _check_container(name: str, value: Any, hint: Any, notes: Sequence[Any]) -> None:
    """Check a list or a mapping, and everything in it."""
    kind = get_origin(hint)
    # A string is a sequence of strings too, and never what is meant.
    _require_kind(name, value, hint, isinstance(value, kind) and not isinstance(value, str), ())
    _check_rules(name, value, notes)
    if kind is Mapping:
        key_hint, value_hint = get_args(hint)
        for key, entry in value.items():
            check_value(f"{name}.{key}", key, key_hint)
            check_value(f"{name}.{key}", entry, value_hint)
    else:
        for index, entry in enumerate(value):
            check_value(f"{name}[{index}]", entry, get_args(hint)[0])


def _check_partial(name: str, value: functools.partial[Any]) -> None:
    """Check the arguments of a function that is called later, by its own annotations."""
    module = getattr(value.func, "__module__", None) or ""
    is_own = module.startswith(f"{__name__.partition('.')[0]}.")
    hints = _hints(value.func) if is_own else {}
    require(not value.args, f"{name}._args_ cannot be used; give every setting by its name")
    for key, argument in value.keywords.items():
        if is_own:
            require(key in hints, f"{name}.{key} is unknown; remove it")
            check_value(f"{name}.{key}", argument, hints[key])
        elif type(argument) in (int, float):
            # The annotations of a library say nothing of ranges, but its numbers are finite too.
            check_value(f"{name}.{key}", argument, float)


def _check_rules(name: str, value: Any, notes: Sequence[Any]) -> None:
    advice = [note.remedy for note in notes if isinstance(note, Advice)]
    for note in notes:
        if isinstance(note, Rule) and not note.holds(value):
            remedy = advice[0] if advice else note.remedy
            raise ConfigError(f"{_equate(name, value)} {note.fault}; {remedy}")
        if isinstance(note, AtMost) and value > note.limit:
            raise ConfigError(f"{_equate(name, value)} {note.explain(value)}")


def _require_kind(name: str, value: Any, hint: Any, fits: bool, notes: Sequence[Any]) -> None:
    """Raise ConfigError unless `fits`; the advice among the notes replaces the type's name."""
    if fits:
        return
    advice = [note.remedy for note in notes if isinstance(note, Advice)]
    remedy = advice[0] if advice else f"give {_describe_type(hint)}"
    kind = "function" if isinstance(value, functools.partial) else type(value).__name__
    article = "an" if kind[0] in "aeiou" else "a"
    fault = f"{name} is null" if value is None else f"{_equate(name, value)} is {article} {kind}"
    raise ConfigError(f"{fault}; {remedy}")


def _equate(name: str, value: Any) -> str:
    """Return "name=value", without a long value's end, and without what may be a secret."""
    text = value.func.__qualname__ if isinstance(value, functools.partial) else repr(value)
    return hide_secrets(f"{name}={text if len(text) <= 100 else f'{text[:100]}...'}")


def hide_secrets(text: str) -> str:
    """Return a text without the values of keys that name secrets, and without names in URLs.

    People give a token, or the address of a server with a password, by mistake.
    """
    text = _SECRET_VALUE.sub(r"\1...", text)
    return _URL_WITH_NAME.sub(r"\1...@", text)


def _describe_type(hint: Any) -> str:
    """Describe a type; the protocol of a group is named by the folder of the group's choices."""
    package, _, group = getattr(hint, "__module__", "").partition(".")
    if package == __name__.partition(".")[0] and getattr(hint, "_is_protocol", False):
        return f"a choice of conf/{group.partition('.')[0]}"
    if get_origin(hint) is Callable:
        return "a function, as in the output of scripts/train.py --cfg job"
    if get_origin(hint) in (Mapping, dict):
        return "a mapping of names, as in the output of scripts/train.py --cfg job"
    if get_origin(hint) in (Sequence, list):
        return "a list, such as [a, b]"
    words = re.sub(r"typing\.|<class '|'>", "", str(hint))
    return f"a value of type {words}"
