"""The alarm: a gold reward falls while the proxy rises.

The test. A straight line is fitted by least squares to each watched gold over the last `window`
evaluations, against the iteration. A one-sided t-test with window - 2 degrees of freedom asks
whether its slope is below 0; with several golds its level is divided by their number (Bonferroni).
The alarm is raised where a slope is below 0 at the stated confidence and the proxy's own fitted
slope is above 0. For a proxy of several parts, each part counts in units of its standard deviation.

What the confidence means. It is that of one test on evaluations whose errors are independent. A run
is tested at every evaluation, so a whole run has more false alarms. A simulation with the defaults
of 2,000 runs with 41 evaluations gave a false alarm in 2 % of the runs whose gold only scatters,
and in none whose gold rises by three standard deviations (`tests/eval/test_alarm.py` repeats 100 of
each). A gold that wanders slowly without a trend raises more. On two recorded runs of the embedded
default, seed 0, vanilla's alarm comes at iteration 140, 40 after its turn, and Guard's at 220. The
window and the confidence were chosen on these two runs, so they do not validate the alarm. A run
with fewer evaluations than the window cannot raise it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from grpo_guard.logger.folder import read_rows
from grpo_guard.metrics import Metric, Metrics, scalar
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.schema import AtMost, Fraction, Name, Rule, component

KEY = "eval/over_optimising"
"""Metric: 1 where the alarm is raised, else 0."""
PROXY = "eval/proxy/"
"""Beginning of the keys of the proxy's parts."""

_log = logging.getLogger(__name__)


@component
class Alarm:
    """When a run counts as over-optimising; the module describes the test."""

    golds: Sequence[Name]
    """Golds to watch, as in eval/gold/<name>, of which more is better; none: no alarm."""
    window: Annotated[
        int, Rule(lambda x: x >= 4, "is too short for a trend", "give 4 or more"), AtMost(10_000)
    ]
    """Evaluations that a trend is fitted to; the alarm is silent before there are as many."""
    confidence: Fraction
    """Confidence of each one-sided test that a gold falls, in (0, 1)."""

    def falling(self, rows: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
        """Return the golds that fall while the proxy rises, at the last of some evaluations.

        Each row has its `iteration` and the numbers of an evaluation by key.
        """
        level = (1 - self.confidence) / max(len(self.golds), 1)
        return tuple(name for name in self.golds if self._falls(f"eval/gold/{name}", rows, level))

    def last_rows(
        self, key: str, rows: Sequence[Mapping[str, float]]
    ) -> Sequence[Mapping[str, float]]:
        """Return the last `window` rows, or fewer, that have a key."""
        return [row for row in rows if key in row][-self.window :]

    def _falls(self, key: str, rows: Sequence[Mapping[str, float]], level: float) -> bool:
        window = self.last_rows(key, rows)
        if len(window) < self.window:
            return False
        iterations = [row["iteration"] for row in window]
        trend = _fit(iterations, [row[key] for row in window], alternative="less")
        return bool(trend.pvalue < level) and _proxy_slope(window) > 0


def _proxy_slope(window: Sequence[Mapping[str, float]]) -> float:
    """Return the sum of the slopes of the proxy's parts, each in its standard deviations."""
    iterations = [row["iteration"] for row in window]
    keys = [key for key in window[-1] if key.startswith(PROXY)]
    total = 0.0
    for key in keys:
        values = np.array([row.get(key, np.nan) for row in window])
        spread = values.std()
        # A part that is missing somewhere, or never changes, says nothing about the trend.
        if spread > 0:
            total += float(_fit(iterations, values / spread).slope)
    return total


def _fit(x: Any, y: Any, alternative: str = "two-sided") -> Any:
    """Fit a straight line, with a test of its slope."""
    from scipy.stats import linregress  # takes a second, which only a long run needs

    return linregress(x, y, alternative=alternative)


class OverOptimised(Exception):
    """A run ends because it over-optimises."""


class Watch:
    """Follows the evaluations of one run and raises the alarm.

    `past` has the evaluations before a resume, as rows of metrics.jsonl. `reports` is whether this
    process writes the alarm to the log.
    """

    def __init__(
        self, alarm: Alarm, past: Iterable[Mapping[str, float]] = (), reports: bool = True
    ) -> None:
        self.alarm = alarm
        self.rows = list(past)
        self.reports = reports
        self.raised = any(row.get(KEY) for row in self.rows)

    def observe(self, iteration: int, metrics: Metrics) -> dict[str, Metric]:
        """Take an evaluation and return the alarm as a metric; nothing if none was due."""
        values = {key: m.value for key, m in metrics.items() if np.isfinite(m.value)}
        if not values:
            return {}
        self._check_names(values)
        self.rows.append({"iteration": iteration, **values})
        falling = self.alarm.falling(self.rows)
        if falling and not self.raised and self.reports:
            _log.warning(self._describe(falling))
        self.raised = self.raised or bool(falling)
        return {KEY: scalar(float(bool(falling)))}

    def _check_names(self, values: Mapping[str, float]) -> None:
        """Warn at the first evaluation of golds that it does not measure."""
        golds = sorted(key.rpartition("/")[2] for key in values if key.startswith("eval/gold/"))
        missing = sorted(set(self.alarm.golds) - set(golds))
        if missing and not self.rows and self.reports:
            _log.warning(
                "eval.alarm.golds has %s, but the evaluations measure %s; they are not watched",
                ", ".join(missing),
                ", ".join(golds) or "no gold",
            )

    def _describe(self, falling: Sequence[str]) -> str:
        """Describe an alarm by the first and the last evaluation that each gold was tested on."""
        changes = []
        for name in falling:
            key = f"eval/gold/{name}"
            first, *_, last = self.alarm.last_rows(key, self.rows)
            changes.append(
                f"{key} falls from {first[key]:.3g} at iteration {first['iteration']}"
                f" to {last[key]:.3g} at {last['iteration']}"
            )
        sure = f"{100 * self.alarm.confidence:g} % confidence"
        return f"over-optimising: {', '.join(changes)}, while the proxy rises ({sure})"


def open_watch(alarm: Alarm, folder: Path, start: int, ranks: Ranks) -> Watch:
    """Watch a run from iteration `start` on, after the evaluations that its folder has."""
    past = read_rows(folder, 0, start) if ranks.is_first else []
    evaluations = [row for row in past if any(key.startswith("eval/") for key in row)]
    return Watch(alarm, ranks.broadcast(evaluations), reports=ranks.is_first)
