"""How numbers are written: short, with their errors, and in type's own signs."""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from grpo_guard.report.measure import Estimate


def number(value: float) -> str:
    """Three digits at most, small numbers with an exponent."""
    if np.isnan(value):
        return "-"
    return (
        f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}".replace("e-0", "e-")
    )


def give_or_take(value: float, error: float) -> str:
    """A number and its standard error."""
    return f"{number(value)} ± {number(error)}"


def estimate(found: Estimate, digits: int = 3) -> str:
    """A signed number and its standard error, where there is one."""
    error = "" if np.isnan(found.error) else f" ± {found.error:.{digits}f}"
    return f"{found.value:+.{digits}f}{error}"


def percent(share: float) -> str:
    """A share in percent."""
    return (
        "-"
        if np.isnan(share)
        else f"{100 * share:.3g} %"
        if share >= 0.001 or share == 0
        else "under 0.1 %"
    )


def times(value: float) -> str:
    """A factor."""
    return "-" if np.isnan(value) else f"{value:.3g}x"


def span(counts: Int[ndarray, " N"]) -> str:
    """Counts from the least to the most, or the one that all are."""
    least, most = counts.min(), counts.max()
    return f"{least}" if least == most else f"{least} to {most}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def typeset(text: str) -> str:
    """Arrows, minus and multiplication signs for what is typed in ASCII."""
    text = text.replace("->", "\N{RIGHTWARDS ARROW}")
    text = re.sub(r"(?<![\w.])-(?=[\d.])|(?<=e)-(?=\d)|(?<= )-(?= )", "\N{MINUS SIGN}", text)
    return re.sub(r"(?<=\d)x\b", "\N{MULTIPLICATION SIGN}", text)
