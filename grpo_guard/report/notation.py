"""How the report writes numbers and notes: short, with errors, and with typographic signs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from grpo_guard.report.statistics import Interval

LOPSIDED = 0.15
"""Share of half an interval's length: of a number further from its middle, both ends are written.

"±" would put the ends in wrong places, and over few seeds even on the wrong side of 0.
"""

ROUNDING = 1e-9
"""Share of a number below which its error is that of the arithmetic, and is not written."""


def format_number(value: float) -> str:
    """Write at most three digits, and small numbers with an exponent; "-" for NaN."""
    if np.isnan(value):
        return "-"
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:.3g}"
    return shorten_exponent(f"{value:.1e}")


def shorten_exponent(number: str) -> str:
    """Write an exponent without its leading zero and plus, as in 1e-4 and 1e5."""
    return number.replace("e-0", "e-").replace("e+0", "e")


def format_with_error(value: float, error: float) -> str:
    """Write a number and its standard error."""
    return f"{format_number(value)} ± {format_number(error)}"


def format_interval(interval: Interval, *, signed: bool) -> str:
    """Write a number and half the length of its interval, to two digits of that.

    Both ends are written of an interval that is `LOPSIDED`. The interval is left out if it is not
    known or has no length.
    """
    half = _written_half_width(interval)
    middle = (interval.low + interval.high) / 2
    if half > 0 and abs(interval.value - middle) > LOPSIDED * half:
        return format_ends(interval, signed=signed)
    sign = "+" if signed and interval.value else ""
    if half == 0:
        return f"{interval.value:{sign}.3g}" if math.isfinite(interval.value) else "-"
    digits = _count_digits(half)
    return f"{interval.value:{sign}.{digits}f} ± {half:.{digits}f}"


def format_ends(interval: Interval, *, signed: bool = True) -> str:
    """Write a number and both ends of its interval, whatever its form.

    The ends are left out if they are not known or equal.
    """
    half = _written_half_width(interval)
    if half == 0:
        return format_interval(interval, signed=signed)
    sign = "+" if signed else ""
    digits = _count_digits(half)
    ends = f"{interval.low:{sign}.{digits}f} to {interval.high:{sign}.{digits}f}"
    return f"{interval.value:{sign}.{digits}f} ({ends})"


def _written_half_width(interval: Interval) -> float:
    """Return half the length of an interval; 0 if it is not known or is `ROUNDING`."""
    half = interval.half_width
    return half if half > ROUNDING * abs(interval.value) else 0.0


def _count_digits(half_width: float) -> int:
    """Return how many decimals show two digits of half an interval."""
    return max(0, 1 - math.floor(math.log10(half_width)))


def format_percent(share: float) -> str:
    """Write a share in percent; "-" for NaN."""
    if np.isnan(share):
        return "-"
    return f"{100 * share:.3g} %" if share >= 0.001 or share == 0 else "under 0.1 %"


def format_factor(value: float) -> str:
    """Write a factor, such as "20x"; "-" for NaN."""
    return "-" if np.isnan(value) else f"{value:.3g}x"


def format_range(counts: Int[ndarray, " N"]) -> str:
    """Write the smallest and the largest count, or the one that all are equal to."""
    least, most = counts.min(), counts.max()
    return f"{least}" if least == most else f"{least} to {most}"


def format_duration(seconds: float) -> str:
    """Write a duration in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def join_notes(notes: Mapping[str, Sequence[str]]) -> str:
    """Write the notes of rewards on one picture, each line after the name of its reward."""
    return "\n".join(f"{name}: {line}" for name, lines in notes.items() for line in lines)


def typeset(text: str) -> str:
    """Replace ASCII arrows, minus signs and multiplication signs by typographic ones.

    It is for sentences and numbers: paths and settings must stay as they can be typed.
    """
    text = text.replace("->", "\N{RIGHTWARDS ARROW}")
    text = re.sub(r"(?<![\w.])-(?=[\d.])|(?<=\de)-(?=\d)|(?<= )-(?= )", "\N{MINUS SIGN}", text)
    return re.sub(r"(?<=\d)x\b", "\N{MULTIPLICATION SIGN}", text)


def bind_intervals(text: str) -> str:
    """Replace the spaces within intervals by ones at which no line breaks."""
    text = re.sub(r"\((\S+) to (\S+)\)", "(\\1\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}\\2)", text)
    return text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def count_of(count: int, one: str, several: str) -> str:
    """Write a count with its noun."""
    return f"{count} {one if count == 1 else several}"
