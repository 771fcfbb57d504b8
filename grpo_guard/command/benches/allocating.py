"""The table of `bench.py allocator`: freed memory kept for the next tensors, or returned."""

from __future__ import annotations

import resource
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from rich.progress import track
from rich.table import Table

from grpo_guard.command.benches.compiling import count_cpu_seconds
from grpo_guard.command.benches.iterations import prepare_sessions
from grpo_guard.parallel.allocator import keep_freed_memory, return_freed_memory
from grpo_guard.schema import record, require
from grpo_guard.train import iterate

VARIANTS: Mapping[str, Callable[[], bool]] = {
    "returned": return_freed_memory,
    "kept": keep_freed_memory,
}
"""What sets each variant."""


@record
class Iteration:
    """What an iteration cost."""

    seconds: float
    """CPU seconds."""
    faults: int
    """Pages that the system had to provide."""


def measure_allocators(overrides: Sequence[str], rounds: int) -> dict[str, list[Iteration]]:
    """Run iterations of one session with either variant in turn, after one of each."""
    session = prepare_sessions(["guard"], overrides)["guard"]
    costs: dict[str, list[Iteration]] = {name: [] for name in VARIANTS}
    for iteration in track(range(rounds + 1), "timing"):
        for name, choose in VARIANTS.items():
            require(
                choose(),
                "memory cannot be kept here; this needs glibc, and no MALLOC_ variable or"
                " GLIBC_TUNABLES in the environment",
            )
            before = count_faults()
            _, seconds = count_cpu_seconds(partial(iterate, session, iteration))
            costs[name].append(Iteration(seconds=seconds, faults=count_faults() - before))
    return {name: rows[1:] for name, rows in costs.items()}


def count_faults() -> int:
    """Return the pages that the system has provided to this process without reading a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def make_table(costs: Mapping[str, Sequence[Iteration]]) -> Table:
    """Make a table of CPU seconds and page faults, with ratios taken round by round."""
    table = Table("freed memory is", "iteration, CPU s", "page faults", "iteration / returned")
    for name, rows in costs.items():
        pairs = zip(rows, costs["returned"], strict=True)
        ratios = [own.seconds / other.seconds for own, other in pairs]
        table.add_row(
            name,
            f"{statistics.median(row.seconds for row in rows):.2f}",
            f"{statistics.median(row.faults for row in rows):.0f}",
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
        )
    return table
