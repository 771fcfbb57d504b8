"""How numbers are written."""

from __future__ import annotations

import pytest

from grpo_guard.report.notation import format_duration, format_number, format_percent

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
