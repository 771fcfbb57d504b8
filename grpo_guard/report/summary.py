"""The summary table: one row per quantity, one column per run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from grpo_guard.report import measure
from grpo_guard.report.measure import Kind
from grpo_guard.report.notation import duration, give_or_take, percent, times
from grpo_guard.report.runs import Run
from grpo_guard.types import record

Tell = Callable[[Run], str]


@record
class Section:
    """Rows under a heading: a quantity's name and its value in every run."""

    title: str
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def summary(runs: Sequence[Run]) -> tuple[Section, ...]:
    """Everything that fits a line."""
    sections = {
        "Run": RUN,
        "Held-out prompts, first -> last": _evaluations(runs),
        "Ratios, averaged over all iterations": RATIOS,
        "Clip and gradient, averaged over all iterations": CLIP,
    }
    return tuple(
        Section(
            title=title, rows=tuple((name, tuple(map(tell, runs))) for name, tell in rows.items())
        )
        for title, rows in sections.items()
    )


def _evaluations(runs: Sequence[Run]) -> Mapping[str, Tell]:
    """The proxy, and every gold of any of the runs."""
    names = sorted({name for run in runs if (name := measure.proxy_name(run))})
    proxy = f"proxy: {' or '.join(names)}" if names else "proxy"
    return {proxy: _proxy} | {f"gold: {name}": _gold(name) for name in measure.gold_names(runs)}


def _proxy(run: Run) -> str:
    return _ends(measure.proxy(run).value)


def _gold(name: str) -> Tell:
    return lambda run: _ends(measure.gold(run, name).value)


def _ends(values: np.ndarray) -> str:
    return f"{values[0]:.3f} -> {values[-1]:.3f}" if len(values) else "-"


def _iterations(run: Run) -> str:
    planned = run.setting("iterations")
    return f"{run.iterations}" if run.iterations >= planned else f"{run.iterations} of {planned}"


def _images(run: Run) -> str:
    values = run.series("images")[1]
    return f"{values[-1] if len(values) else 0:,.0f}"


def _time(run: Run) -> str:
    return duration(sum(measure.seconds(run).values(), 0.0))


def _mean(kind: Kind, at: int) -> Tell:
    def tell(run: Run) -> str:
        found = measure.ratio(run, kind)
        return give_or_take(found.mean[at], found.error[at]) if found else "-"

    return tell


def _spread(kind: Kind) -> Tell:
    return lambda run: times(measure.ratio_spread(run, kind))


def _clipped(*, high: bool) -> Tell:
    def tell(run: Run) -> str:
        found = measure.clip(run)
        return percent(float((found.high if high else found.low).mean())) if found else "-"

    return tell


RUN: Mapping[str, Tell] = {
    "objective": lambda run: run.objective,
    "iterations": _iterations,
    "images": _images,
    "time": _time,
}

RATIOS: Mapping[str, Tell] = {
    "raw mean - 1, first trained step": _mean("raw", 0),
    "raw mean - 1, last trained step": _mean("raw", -1),
    "normalised mean - 1, last trained step": _mean("norm", -1),
    "spread of the optimised ratio, largest / smallest": _spread("own"),
    "spread of the raw ratio, largest / smallest": _spread("raw"),
    "spread of the normalised ratio, largest / smallest": _spread("norm"),
}

CLIP: Mapping[str, Tell] = {
    "clipped above, of A > 0": _clipped(high=True),
    "clipped below, of A < 0": _clipped(high=False),
    "share of the gradient, largest / smallest": lambda run: times(measure.gradient_spread(run)),
}
