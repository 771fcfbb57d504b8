"""The summary table: one row per quantity, one column per run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from grpo_guard.report import measure
from grpo_guard.report.claims import number, percent, times
from grpo_guard.report.measure import Kind
from grpo_guard.report.runs import Run
from grpo_guard.types import record


@record
class Section:
    """Rows under a heading: a quantity's name and its value in every run."""

    title: str
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def summary(runs: Sequence[Run]) -> tuple[Section, ...]:
    """Everything that fits a line."""
    golds = measure.gold_names(runs)
    return (
        _section(
            runs,
            "Run",
            {
                "objective": lambda run: run.objective,
                "iterations": _iterations,
                "images": lambda run: f"{_last(run, 'images'):,.0f}",
                "time": lambda run: duration(sum(measure.seconds(run).values(), 0.0)),
            },
        ),
        _section(
            runs,
            "Held-out prompts, first -> last",
            {_proxy_title(runs): _proxy} | {f"gold: {name}": _gold(name) for name in golds},
        ),
        _section(
            runs,
            "Ratios, averaged over all iterations",
            {
                "raw mean - 1, first trained step": _mean("raw", 0),
                "raw mean - 1, last trained step": _mean("raw", -1),
                "normalised mean - 1, last trained step": _mean("norm", -1),
                "spread of the optimised ratio, largest / smallest": lambda r: times(measure.ratio_spread(r, "own")),
                "spread of the raw ratio, largest / smallest": lambda r: times(measure.ratio_spread(r, "raw")),
                "spread of the normalised ratio, largest / smallest": lambda r: times(measure.ratio_spread(r, "norm")),
            },
        ),
        _section(
            runs,
            "Clip and gradient, averaged over all iterations",
            {
                "clipped above, of A > 0": lambda run: _clipped(run, high=True),
                "clipped below, of A < 0": lambda run: _clipped(run, high=False),
                "share of the gradient, largest / smallest": lambda run: times(measure.gradient_spread(run)),
            },
        ),
    )


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _section(runs: Sequence[Run], title: str, rows: dict[str, Callable[[Run], str]]) -> Section:
    return Section(title=title, rows=tuple((name, tuple(tell(run) for run in runs)) for name, tell in rows.items()))


def _iterations(run: Run) -> str:
    planned = run.setting("iterations")
    return f"{run.iterations}" if run.iterations >= planned else f"{run.iterations} of {planned}"


def _last(run: Run, key: str) -> float:
    values = run.series(key)[1]
    return float(values[-1]) if len(values) else 0.0


def _proxy_title(runs: Sequence[Run]) -> str:
    names = {measure.proxy_name(run) for run in runs} - {None}
    return f"proxy: {' or '.join(sorted(map(str, names)))}" if names else "proxy"


def _proxy(run: Run) -> str:
    return _ends(measure.proxy(run).value)


def _gold(name: str) -> Callable[[Run], str]:
    return lambda run: _ends(measure.gold(run, name).value)


def _ends(values: np.ndarray) -> str:
    return f"{values[0]:.3f} -> {values[-1]:.3f}" if len(values) else "-"


def _mean(kind: Kind, at: int) -> Callable[[Run], str]:
    def tell(run: Run) -> str:
        found = measure.ratio(run, kind)
        return f"{number(found.mean[at])} ± {number(found.error[at])}" if found else "-"

    return tell


def _clipped(run: Run, *, high: bool) -> str:
    found = measure.clip(run)
    return percent(float((found.high if high else found.low).mean())) if found else "-"
