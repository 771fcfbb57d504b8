"""Prints which numbers of a run follow from what it kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from grpo_guard.command.verification.kept import Kept, read_kept
from grpo_guard.command.verification.numbers import Comparison, compare

SHOWN = 10
"""How many numbers that differ are printed."""


def verify(run: Path) -> bool:
    """Print a table for each iteration that a run kept; return whether all numbers agree.

    Raises ConfigError if the run cannot be verified.
    """
    results = [(kept, compare(kept)) for kept in read_kept(run)]
    for kept, comparisons in results:
        print("\n".join(format_table(kept, comparisons)))
    return all(number.agrees for _, comparisons in results for number in comparisons)


def format_table(kept: Kept, comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Yield the lines for an iteration, of 80 columns: a row for each kind, then what differs."""
    rows = kept.rows
    broken = np.count_nonzero(~np.isfinite(rows.mean).all(1))
    yield (
        f"iteration {kept.iteration}: {len(kept.start)} samples, {len(rows.step)} rows"
        f"{f' ({broken} not finite)' if broken else ''},"
        f" {rows.update.max() + 1} updates, D = {kept.dimensions}"
    )
    yield f"{'':<18}{'numbers':>9}{'largest difference':>21}{'of the allowed':>17}"
    for part in dict.fromkeys(number.part for number in comparisons):
        numbers = [number for number in comparisons if number.part == part]
        worst = max(numbers, key=lambda number: number.strain)
        verdict = "agree" if all(number.agrees for number in numbers) else "DIFFER"
        yield (
            f"{part:<18}{len(numbers):>9}{worst.difference:>21.1e}{worst.strain:>16.0%}  {verdict}"
        )
    different = [number for number in comparisons if not number.agrees]
    for number in different[:SHOWN]:
        yield f"{number.key}: the run has {number.logged:.9g}, computed {number.computed:.9g}"
    if len(different) > SHOWN:
        yield f"and {len(different) - SHOWN} more"
    share = "all" if not different else f"{len(comparisons) - len(different)} of"
    yield f"{share} {len(comparisons)} numbers follow from what the iteration kept"
