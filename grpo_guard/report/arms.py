"""Vanilla against Guard: golds at matched proxy, and cautions about the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from grpo_guard.report import curves, per_step
from grpo_guard.report.curves import Estimate
from grpo_guard.report.notation import format_percent
from grpo_guard.report.runs import Run
from grpo_guard.report.settings import differing_settings
from grpo_guard.schema import record


@record
class MatchedGold:
    """A gold at the same proxy values in both arms, averaged over the runs of each arm."""

    vanilla: Estimate
    """Mean gold of the vanilla runs."""
    guard: Estimate
    """Mean gold of the Guard runs."""

    @property
    def difference(self) -> Estimate:
        """Guard's gold minus vanilla's."""
        return Estimate(
            value=self.guard.value - self.vanilla.value,
            error=float(np.hypot(self.guard.error, self.vanilla.error)),
        )


def split_arms(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Return the vanilla runs and the Guard runs."""
    vanilla = [run for run in runs if run.variant == "vanilla"]
    guard = [run for run in runs if run.variant == "guard"]
    return vanilla, guard


def pair_arms(runs: Sequence[Run]) -> tuple[tuple[Run, Run], ...]:
    """Return every pair of a vanilla run and a Guard run."""
    return tuple(product(*split_arms(runs)))


def matched_gold(runs: Sequence[Run], name: str) -> MatchedGold | None:
    """Return a gold at the proxies that all vanilla and Guard runs passed; None without both."""
    proxies = matched_proxies(runs)
    vanilla, guard = (
        _average([curves.gold_at_proxy(run, name, proxies) for run in arm])
        for arm in split_arms(runs)
    )
    if vanilla is None or guard is None:
        return None
    return MatchedGold(vanilla=vanilla, guard=guard)


def matched_proxies(runs: Sequence[Run]) -> Float[ndarray, " G"]:
    """Return evenly spaced proxy values that all vanilla and Guard runs passed."""
    return curves.common_proxies([run for arm in split_arms(runs) for run in arm])


def _average(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """Average over runs; None if no run has an estimate.

    The error is that of the evaluations or, for two or more runs, the scatter between runs if it is
    larger.
    """
    known = [estimate for estimate in estimates if estimate is not None]
    if not known:
        return None
    values = np.array([estimate.value for estimate in known])
    errors = np.array([estimate.error for estimate in known])
    between = values.std(ddof=1) / np.sqrt(len(known)) if len(known) > 1 else 0.0
    within = np.sqrt(np.square(errors).sum()) / len(known)
    return Estimate(value=float(values.mean()), error=float(np.maximum(within, between)))


def cautions(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return reasons why the arms may differ for something else than their variant."""
    vanilla, guard = split_arms(runs)
    if not (vanilla and guard):
        return ()
    texts = (
        _few_seeds(vanilla, guard),
        _unequal_clipping(vanilla, guard),
        _other_settings(vanilla, guard),
    )
    return tuple(text for text in texts if text)


def _few_seeds(vanilla: Sequence[Run], guard: Sequence[Run]) -> str:
    count = min(len(vanilla), len(guard))
    if count == 1:
        return "There is only one seed per arm, so the errors leave out how much seeds differ."
    if count < 5:
        return (
            f"There are only {count} seeds per arm, so the error between runs is itself uncertain."
        )
    return ""


def _unequal_clipping(vanilla: Sequence[Run], guard: Sequence[Run]) -> str:
    plain = float(np.mean([_clipped_share(run) for run in vanilla]))
    guarded = float(np.mean([_clipped_share(run) for run in guard]))
    # a NaN (no clip fractions) compares as False and gives no caution
    if not max(plain, guarded) > 1.5 * min(plain, guarded):
        return ""
    return (
        f"The arms clip unequal shares of their rows (vanilla {format_percent(plain)},"
        f" Guard {format_percent(guarded)}): the clip range may cause a difference, not the ratio."
    )


def _clipped_share(run: Run) -> float:
    shares = per_step.clipped_shares(run)
    return float((shares.high.mean() + shares.low.mean()) / 2) if shares else np.nan


def _other_settings(vanilla: Sequence[Run], guard: Sequence[Run]) -> str:
    """Name settings that differ between the arms, or the variant's own within an arm."""
    both = differing_settings([run.config for run in (*vanilla, *guard)])
    keys = [key for key in both if not key.startswith("clipping.") and key != "seed"]
    for arm in (vanilla, guard):
        within = differing_settings([run.config for run in arm])
        keys += [key for key in within if key.startswith("clipping.") and key not in keys]
    return f"The runs also differ in {', '.join(keys)}." if keys else ""
