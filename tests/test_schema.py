"""Components check their settings; components and records are frozen and take keywords only."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import pytest

from grpo_guard.schema import (
    MAY_BE_INFINITE,
    NOT_EMPTY,
    Advice,
    AtMost,
    ConfigError,
    Fraction,
    Name,
    NonNegative,
    Positive,
    PositiveInt,
    Share,
    Threshold,
    component,
    hide_secrets,
    record,
    require,
)


@component
class Inner:
    """A component inside another one."""

    size: int


@component
class Part:
    """A component with a field of every kind that the package uses."""

    level: float
    count: int
    names: list[str]
    inner: Inner | None

    def __post_init__(self):
        require(self.level > 0, f"level={self.level} is not positive; give 0.7")


@record
class Point:
    """A record."""

    x: int


GOOD = {"level": 0.7, "count": 3, "names": ["a"], "inner": Inner(size=1)}


@pytest.mark.parametrize("change", [{}, {"level": 1}, {"inner": None}, {"names": []}])
def test_components_accept_values_of_their_fields_types(change):
    settings = GOOD | change
    part = Part(**settings)
    assert {key: getattr(part, key) for key in settings} == settings


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"level": "high"}, "level='high' is a str; give a value of type float"),
        ({"count": 1.5}, "count=1.5 is a float; give a value of type int"),
        ({"count": None}, "count is null; give a value of type int"),
        ({"names": "a"}, "names='a' is a str; give a list, such as [a, b]"),
        ({"names": [1]}, "names[0]=1 is an int; give a value of type str"),
        ({"names": [""]}, "names[0]='' is empty; give a text"),
        ({"count": True}, "count=True is a bool; give a value of type int"),
        ({"count": 10**13}, "count=10000000000000 is too large; give a number up to "),
        ({"level": math.inf}, "level=inf is not finite; give a number"),
        ({"level": math.nan}, "level=nan is not finite; give a number"),
        ({"level": 1e308}, "level=1e+308 is too large; give a number up to 1e+09"),
        ({"inner": 3}, "inner=3 is an int; give a value of type "),
        ({"level": -1.0}, "level=-1.0 is not positive; give 0.7"),
    ],
)
def test_components_refuse_other_values_in_one_line(change, line):
    with pytest.raises(ConfigError, match=f"^{re.escape(line)}[^\n]*$"):
        Part(**GOOD | change)


def holder(hint):
    """Return a component with one field of a type."""

    @component
    class Holder:
        part: hint

    return Holder


@pytest.mark.parametrize(
    ("hint", "value", "line"),
    [
        (Positive, 0.0, "part=0.0 is not positive; give more than 0"),
        (PositiveInt, 0, "part=0 is not positive; give 1 or more"),
        (NonNegative, -1, "part=-1 is negative; give 0 or more"),
        (Share, 1.5, "part=1.5 is outside [0, 1]; give a share"),
        (Fraction, 1.0, "part=1.0 is outside (0, 1); give a fraction"),
        (Threshold, 1.0, "part=1.0 is outside [0, 1); give less than 1"),
        (Name, "a/b", "part='a/b' has a slash; give a name without one"),
        (str, " ", "part=' ' is empty; give a text"),
        (Annotated[list[str], NOT_EMPTY], [], "part=[] is empty; give at least one"),
        (Annotated[PositiveInt, AtMost(9)], 10, "part=10 is more than 9; give less"),
        (
            Annotated[int, AtMost(9, unit_bytes=10**9)],
            50,
            "part=50 needs 50 GB of memory or more; give at most 9",
        ),
        (Annotated[Positive | None, Advice("use none")], -1.0, "part=-1.0 is not positive; use "),
        (Annotated[Positive, MAY_BE_INFINITE], -math.inf, "part=-inf is not positive; give"),
        (Literal["a", "b"], "c", "part='c' is unknown; choose from a, b"),
        (Mapping[str, Inner], {"x": 5}, "part.x=5 is an int; give a value of type "),
        (Inner, functools.partial(Inner), "part=Inner is a function; give a value of type "),
        (Callable[[Point], int], len, None),
        (Callable[[Point], int], functools.partial(Inner), "part=Inner is a function; give a "),
        (Callable[[Point], int], lambda: 1, "part=<function <lambda>"),
        (Annotated[Positive, MAY_BE_INFINITE], math.inf, None),
        (Positive | None, None, None),
    ],
)
def test_ranges_belong_to_the_types_of_fields(hint, value, line):
    if line is None:
        assert holder(hint)(part=value).part is value
        return
    with pytest.raises(ConfigError, match=f"^{re.escape(line)}[^\n]*$"):
        holder(hint)(part=value)


def test_numbers_of_a_function_of_a_library_are_finite():
    make = holder(Callable[[str], int])
    assert make(part=functools.partial(int, base=2)).part("11") == 3
    with pytest.raises(ConfigError, match=r"^part.base=nan is not finite; give a number$"):
        make(part=functools.partial(int, base=math.nan))


@pytest.mark.parametrize("settings", [GOOD | {"levle": 1}, {"level": 0.7}])
def test_components_refuse_unknown_and_missing_settings(settings):
    with pytest.raises(TypeError):
        Part(**settings)


def test_components_and_records_are_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Part(**GOOD).level = 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        Point(x=1).x = 2
    with pytest.raises(TypeError):
        Inner(1)
    with pytest.raises(TypeError):
        Point(1)


def test_components_are_equal_by_value_and_records_by_identity():
    """Tensors in a record have no single truth value, so records cannot be compared by value."""
    point = Point(x=1)
    assert Inner(size=1) == Inner(size=1)
    assert point == point
    assert point != Point(x=1)


@pytest.mark.parametrize(
    ("line", "printed"),
    [
        ("token=['s3cret', 's3cret'] is a list; give a", "token=... is a list; give a"),
        ("far.token={'a': 's3cret'} is a dict; give a", "far.token=... is a dict; give a"),
        ("API_KEY='s3 cret' has", "API_KEY=... has"),
        (
            "Error parsing override 'reward.token=s3cret{'; see",
            "Error parsing override 'reward.token=...; see",
        ),
        ("http://s3cret@a and http://s3:cret@b: down", "http://...@a and http://...@b: down"),
        ("t5_tokens=1 and urls=http://a/@b", "t5_tokens=1 and urls=http://a/@b"),
    ],
)
def test_lines_hide_secrets(line, printed):
    assert hide_secrets(line) == printed


def test_a_refusal_hides_a_secret():
    @component
    class Holder:
        token: str | None
        url: int

    with pytest.raises(ConfigError, match=r"^token=\.\.\. is a list; give a value of type str$"):
        Holder(token=["s3cret"], url=1)
    with pytest.raises(ConfigError, match=r"^url='http://\.\.\.@host' is a str; give a value of "):
        Holder(token=None, url="http://s3cret@host")
