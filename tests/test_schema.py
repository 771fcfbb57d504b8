"""Components check their settings; components and records are frozen and take keywords only."""

import dataclasses
import re

import pytest

from grpo_guard.schema import ConfigError, component, record, require


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
        ({"count": None}, "count=None is a NoneType; give a value of type int"),
        ({"names": "a"}, "names='a' is a str; give a value of type list[str]"),
        ({"names": [1]}, "names=[1] is a list; give a value of type list[str]"),
        ({"inner": 3}, "inner=3 is a int; give a value of type "),
        ({"level": -1.0}, "level=-1.0 is not positive; give 0.7"),
    ],
)
def test_components_refuse_other_values_in_one_line(change, line):
    with pytest.raises(ConfigError, match=f"^{re.escape(line)}[^\n]*$"):
        Part(**GOOD | change)


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
