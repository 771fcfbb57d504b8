"""The table of `bench.py compile`."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from rich.progress import track
from rich.table import Table

from grpo_guard.command.benches.iterations import describe_ratios, prepare_sessions
from grpo_guard.schema import record
from grpo_guard.session import Session
from grpo_guard.train import iterate

T = TypeVar("T")
VARIANTS = {"eager": "false", "compiled": "true"}
"""The setting backbone.compile by variant."""


@record
class Cost:
    """CPU seconds of a variant; unlike elapsed time, they hardly depend on other programs."""

    start: float
    """Seconds of loading and of the first iteration, which compiles; with the compiler's own."""
    iterations: tuple[float, ...]
    """Seconds of each further iteration."""


def measure_compiling(overrides: Sequence[str], rounds: int) -> dict[str, Cost]:
    """Alternate iterations with and without backbone.compile, after one that compiles."""
    sessions = dict[str, Session]()
    starts = dict[str, float]()
    # What a process needs once, such as imports, counts for neither.
    start_variant(overrides)
    for name, setting in VARIANTS.items():
        start = partial(start_variant, [*overrides, f"backbone.compile={setting}"])
        sessions[name], starts[name] = count_cpu_seconds(start)
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for iteration in track(range(1, rounds + 1), "timing"):
        for name, session in sessions.items():
            _, spent = count_cpu_seconds(partial(iterate, session, iteration))
            seconds[name].append(spent)
    return {name: Cost(start=starts[name], iterations=tuple(seconds[name])) for name in VARIANTS}


def start_variant(overrides: Sequence[str]) -> Session:
    """Load an experiment and run its first iteration."""
    session = prepare_sessions(["guard"], overrides)["guard"]
    return iterate(session, 0)[0]


def count_cpu_seconds(call: Callable[[], T]) -> tuple[T, float]:
    """Return what a call returns, and the CPU seconds it took, with those of child processes."""
    before = sum(os.times()[:4])
    result = call()
    return result, sum(os.times()[:4]) - before


def make_table(costs: Mapping[str, Cost]) -> Table:
    """Make a table of CPU seconds, and of an iteration's over the eager one's, round by round."""
    table = Table("variant", "start, CPU s", "iteration, CPU s", "iteration / eager")
    for name, cost in costs.items():
        pairs = zip(cost.iterations, costs["eager"].iterations, strict=True)
        ratios = [own / eager for own, eager in pairs]
        ratio = describe_ratios(ratios)
        table.add_row(name, f"{cost.start:.1f}", f"{statistics.median(cost.iterations):.2f}", ratio)
    return table


def describe_gain(costs: Mapping[str, Cost]) -> str:
    """Say from how many iterations on compiling costs less than it saves."""
    eager, compiled = costs["eager"], costs["compiled"]
    saved = statistics.median(eager.iterations) - statistics.median(compiled.iterations)
    extra = compiled.start - eager.start
    if saved <= 0:
        return "compiling saves nothing here"
    return (
        f"starting compiled costs {extra:.0f} CPU s more here, and an iteration saves {saved:.2f}:"
        f" it pays from {max(1, math.ceil(extra / saved))} iterations on"
    )
