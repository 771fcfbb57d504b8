"""Vanilla against Guard: golds at matched proxy, and why a difference may have other reasons than the objective."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from grpo_guard.report import measure
from grpo_guard.report.measure import Estimate
from grpo_guard.report.notation import percent
from grpo_guard.report.runs import Run, differences


def arms(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The vanilla and the Guard runs."""
    vanilla, guard = (
        [run for run in runs if run.objective == name] for name in ("vanilla", "guard")
    )
    return vanilla, guard


def pairs(runs: Sequence[Run]) -> tuple[tuple[Run, Run], ...]:
    """Every vanilla run with every Guard run."""
    return tuple(product(*arms(runs)))


def matched(runs: Sequence[Run], name: str) -> tuple[Estimate, Estimate, Estimate] | None:
    """A gold at the proxies that all vanilla and Guard runs passed: vanilla's, Guard's, and Guard's less vanilla's."""
    proxies = common_proxies(runs)
    vanilla, guard = (
        _average([measure.at_proxy(run, name, proxies) for run in arm]) for arm in arms(runs)
    )
    if vanilla is None or guard is None:
        return None
    difference = Estimate(
        value=guard.value - vanilla.value, error=float(np.hypot(guard.error, vanilla.error))
    )
    return vanilla, guard, difference


def common_proxies(runs: Sequence[Run]) -> Float[ndarray, " G"]:
    """Proxy values that all vanilla and Guard runs passed."""
    return measure.common_proxies([run for arm in arms(runs) for run in arm])


def _average(found: Sequence[Estimate | None]) -> Estimate | None:
    """The mean over runs; its error is the evaluations' or, from two runs on, that between runs if it is larger."""
    kept = [one for one in found if one is not None]
    if not kept:
        return None
    values, errors = np.array([one.value for one in kept]), np.array([one.error for one in kept])
    between = values.std(ddof=1) / np.sqrt(len(kept)) if len(kept) > 1 else 0.0
    within = np.sqrt(np.square(errors).sum()) / len(kept)
    return Estimate(value=float(values.mean()), error=float(np.maximum(within, between)))


def cautions(runs: Sequence[Run]) -> tuple[str, ...]:
    """Why a difference between the arms may have other reasons than the objective."""
    vanilla, guard = arms(runs)
    if not (vanilla and guard):
        return ()
    found = (
        _few_seeds(vanilla, guard),
        _unequal_clips(vanilla, guard),
        _other_settings([*vanilla, *guard]),
    )
    return tuple(text for text in found if text)


def _few_seeds(vanilla: Sequence[Run], guard: Sequence[Run]) -> str:
    count = min(len(vanilla), len(guard))
    if count == 1:
        return "One seed a side shows little: how much seeds differ is not in these errors."
    return f"{count} seeds a side: the error between runs is itself uncertain." if count < 5 else ""


def _unequal_clips(vanilla: Sequence[Run], guard: Sequence[Run]) -> str:
    plain, guarded = (float(np.mean([_clipped(run) for run in arm])) for arm in (vanilla, guard))
    if not max(plain, guarded) > 1.5 * min(plain, guarded):
        return ""
    return (
        f"The arms clip unequal shares of their rows (vanilla {percent(plain)}, Guard {percent(guarded)}):"
        " a difference may come from the clip range instead of the ratio."
    )


def _clipped(run: Run) -> float:
    found = measure.clip(run)
    return float((found.high.mean() + found.low.mean()) / 2) if found else np.nan


def _other_settings(runs: Sequence[Run]) -> str:
    keys = [k for k in differences(runs) if not k.startswith("clipping.") and k != "seed"]
    return f"The arms also differ in {', '.join(keys)}." if keys else ""
