"""How numbers are written."""

from __future__ import annotations

from dataclasses import replace

import pytest

from grpo_guard.report.notation import (
    bind_intervals,
    format_duration,
    format_ends,
    format_interval,
    format_number,
    format_percent,
    typeset,
)
from grpo_guard.report.statistics import Interval

NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.123456, "0.123"), (-3.456e-7, "-3.5e-7"), (53.04, "53"), (NAN, "-")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0 %"), (0.0001, "under 0.1 %"), (0.0123, "1.23 %"), (NAN, "-")]
)
def test_percentages_are_short(share: float, text: str) -> None:
    assert format_percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (9000, "2.5 h")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ((0.119, 0.005, 0.273), "+0.12 (+0.01 to +0.27)"),
        ((-0.0642, -0.1331, -0.0083), "-0.064 (-0.133 to -0.008)"),
        ((2.5, 2.5, 2.5), "+2.5"),
        ((0.25, NAN, NAN), "+0.25"),
        ((NAN, NAN, NAN), "-"),
    ],
)
def test_both_ends_of_an_interval_have_the_digits_of_its_width(
    ends: tuple[float, float, float], text: str
) -> None:
    value, low, high = ends
    assert format_ends(Interval(value=value, low=low, high=high)) == text


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ((0.12, 0.02, 0.22), "+0.12 ± 0.10"),
        ((0.12, 0.01, 0.25), "+0.12 ± 0.12"),  # a little lopsided
        ((0.12, 0.01, 0.28), "+0.12 (+0.01 to +0.28)"),
        ((-0.12, -0.28, -0.01), "-0.12 (-0.28 to -0.01)"),
        ((0.25, NAN, NAN), "+0.25"),
        ((0.0, 0.0, 0.0), "0"),
    ],
)
def test_a_lopsided_interval_has_both_ends(ends: tuple[float, float, float], text: str) -> None:
    value, low, high = ends
    assert format_interval(Interval(value=value, low=low, high=high), signed=True) == text


def test_the_other_sign_of_an_interval_swaps_its_ends() -> None:
    mirrored = -Interval(value=-0.12, low=-0.28, high=-0.01)
    assert format_interval(mirrored, signed=False) == "0.12 (0.01 to 0.28)"


@pytest.mark.parametrize("half", [6.9e-18, 1e-11])
def test_rounding_is_no_interval(half: float) -> None:
    interval = Interval(value=0.12, low=0.12 - half, high=0.12 + half)
    rounded = replace(interval, low=0.12 - 1e-17, high=0.12 + 2e-17)
    for one in (interval, rounded):
        assert format_interval(one, signed=True) == format_ends(one) == "+0.12"


@pytest.mark.parametrize(
    ("text", "typographic"),
    [
        ("-0.5 and 1e-4 - 2", "\N{MINUS SIGN}0.5 and 1e\N{MINUS SIGN}4 \N{MINUS SIGN} 2"),
        ("20x, a -> b", "20\N{MULTIPLICATION SIGN}, a \N{RIGHTWARDS ARROW} b"),
        ("the-5 guide-2", "the-5 guide-2"),
    ],
)
def test_signs_are_typographic(text: str, typographic: str) -> None:
    assert typeset(text) == typographic


def test_no_line_breaks_within_an_interval() -> None:
    bound = bind_intervals("exact +0.12 ± 0.10 (8 pairs), at equal proxy +0.08 (+0.04 to +0.11)")
    assert bound.replace("\N{NO-BREAK SPACE}", "_") == (
        "exact +0.12_±_0.10 (8 pairs), at equal proxy +0.08 (+0.04_to_+0.11)"
    )
