"""What GRPO-Guard's paper claims, each judged by the numbers of the runs at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from grpo_guard.report import measure
from grpo_guard.report.measure import Estimate, Ratio
from grpo_guard.report.runs import Run, differences
from grpo_guard.types import record

Verdict = Literal["shows", "does not show", "not measured"]

CLEAR = 3.0
"""Standard errors from which a difference counts."""


@record
class Finding:
    """What one run (or pair of runs) says of a claim; `holds` is None where it cannot tell."""

    holds: bool | None
    text: str


@record
class Claim:
    """A sentence of the paper's, what the paper measured, the rule that judges it here, and what was found.

    It is shown where every finding that can tell holds it (any, with `some`).
    """

    title: str
    paper: str
    rule: str
    findings: tuple[Finding, ...]
    some: bool = False
    cautions: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """What the findings amount to."""
        told = [finding.holds for finding in self.findings if finding.holds is not None]
        if not told:
            return "not measured"
        return "shows" if (any(told) if self.some else all(told)) else "does not show"


def claims(runs: Sequence[Run]) -> tuple[Claim, ...]:
    """Every claim; those about a ratio are judged on the runs that optimise it, or on all where none does."""
    raw, norm = [r for r in runs if r.ratio == "raw"], [r for r in runs if r.ratio == "norm"]
    return (
        Claim(
            title="The raw ratio's mean lies below 1 and falls towards low noise",
            paper="0.99992, 0.99976, 0.99886 at steps 6, 7, 8 (SD3.5-M, vanilla)",
            rule=f"the last trained step is below 1, and below the first, each by more than {CLEAR:g} standard errors",
            findings=_each(raw or runs, shifts_left),
        ),
        Claim(
            title="The raw ratio's spread grows towards low noise",
            paper="standard deviation 1.5e-4, 5e-4, 2.65e-3 at steps 6, 7, 8",
            rule="the last trained step spreads at least twice as widely as the first, and no step but one more widely",
            findings=_each(raw or runs, spreads_late),
        ),
        Claim(
            title="RatioNorm brings the mean back to 1 on every step",
            paper="1.0000 at every step with Guard",
            rule=f"every step's mean lies within a tenth of its spread, or within {CLEAR:g} standard errors, of 1",
            findings=_each(norm or runs, is_centred),
        ),
        Claim(
            title="RatioNorm makes the spread more alike across steps",
            paper="shown, without a number; in theory what remains grows as the step's length dt",
            rule="largest over smallest spread is at most two thirds of the raw ratio's in the same run",
            findings=_each(norm or runs, is_narrower),
        ),
        Claim(
            title="With the raw ratio the upper clip lies idle while the lower one fires",
            paper="upper clip exactly 0, the lower one almost only at the last trained step",
            rule="at least 1 % of the rows with A < 0 lie below the range, at most a tenth as many of A > 0 above it",
            findings=_each(raw, leaves_upper_idle),
        ),
        Claim(
            title="Guard clips both sides about equally",
            paper="about equal on all steps",
            rule="at least 1 % of the rows clipped; |upper - lower| summed over steps at most a fifth of upper + lower",
            findings=_each(norm, clips_evenly),
        ),
        Claim(
            title="Guard evens the gradient out over the steps",
            paper="largest over smallest: about 20x with vanilla, about 2.5x with Guard",
            rule="Guard's largest over smallest share is at most half of vanilla's, for every pair of runs",
            findings=tuple(evens_gradient(a, b) for a, b in product(_arm(runs, "vanilla"), _arm(runs, "guard"))),
        ),
        Claim(
            title="Training over-optimises: the proxy rises while a gold falls",
            paper="images get worse by other rewards and to the eye while the proxy still rises",
            rule=f"in some run the proxy's trend is up and a gold's down, each by more than {CLEAR:g} standard errors"
            " (least squares over four or more evaluations)",
            findings=_each(runs, over_optimises),
            some=True,
            cautions=("Several golds are looked at, so that one falls by chance is likelier than its error says.",),
        ),
        Claim(
            title="At the same proxy, Guard's gold is better",
            paper="gold over the base model's: .84 to .89 (GenEval), .88 to .99 (text) from vanilla to Guard",
            rule=f"some gold is better by more than {CLEAR:g} standard errors, averaged over the proxies that all these"
            " runs passed, and none is worse by as much",
            findings=(is_better(runs),),
            cautions=_cautions(runs),
        ),
    )


def shifts_left(run: Run) -> Finding:
    """The mean of the raw ratio at the last trained step, against 1 and against the first."""
    found = measure.ratio(run, "raw")
    if found is None:
        return _unmeasured(run)
    fall = Estimate(value=found.mean[-1] - found.mean[0], error=float(np.hypot(found.error[0], found.error[-1])))
    below = int((found.significance < -CLEAR).sum())
    text = (
        f"{run.label}: raw mean - 1 = {_mean(found, 0)} at step {found.step[0]}, {_mean(found, -1)} at step"
        f" {found.step[-1]}; clearly below 1 at {below} of {len(found.step)} steps ({_basis(found)})"
    )
    return Finding(holds=bool(found.significance[-1] < -CLEAR and fall.significance < -CLEAR), text=text)


def spreads_late(run: Run) -> Finding:
    """The spread of the raw ratio at the last trained step, against the others."""
    found = measure.ratio(run, "raw")
    if found is None:
        return _unmeasured(run)
    late = bool(found.std[-1] >= 2 * found.std[0] and found.std[-1] >= np.sort(found.std)[-2:][0])
    text = (
        f"{run.label}: raw std {number(found.std[0])} at step {found.step[0]}, {number(found.std[-1])} at step"
        f" {found.step[-1]}; largest over smallest {times(measure.spread(found.std))}"
    )
    return Finding(holds=late, text=text)


def is_centred(run: Run) -> Finding:
    """The mean of the normalised ratio, step by step; the raw one's beside it."""
    found, raw = measure.ratio(run, "norm"), measure.ratio(run, "raw")
    if found is None:
        return _unmeasured(run)
    off = np.maximum(np.abs(found.shift) - 0.1, 0) * (np.abs(found.significance) > CLEAR)
    worst, beside = _worst(found), f"; raw: {_worst(raw)}" if raw else ""
    text = f"{run.label}: normalised mean is off by at most {worst}{beside} ({_basis(found)})"
    return Finding(holds=not off.any(), text=text)


def is_narrower(run: Run) -> Finding:
    """How unequal the spread is over steps, normalised and raw."""
    norm, raw = measure.ratio_spread(run, "norm"), measure.ratio_spread(run, "raw")
    if np.isnan(norm) or np.isnan(raw):
        return _unmeasured(run)
    text = f"{run.label}: largest over smallest std {times(raw)} raw, {times(norm)} normalised"
    return Finding(holds=norm <= raw * 2 / 3, text=text)


def leaves_upper_idle(run: Run) -> Finding:
    """How often either side of the clip acts."""
    found = measure.clip(run)
    if found is None:
        return _unmeasured(run)
    high, low = found.high.mean(), found.low.mean()
    text = (
        f"{run.label}: {percent(high)} of A > 0 above, {percent(low)} of A < 0 below; at the last step"
        f" {percent(found.high[-1])} and {percent(found.low[-1])}"
    )
    return Finding(holds=bool(low >= 0.01 and high <= low / 10), text=text)


def clips_evenly(run: Run) -> Finding:
    """How alike the two sides of the clip are, step by step."""
    found = measure.clip(run)
    if found is None:
        return _unmeasured(run)
    high, low = found.high.mean(), found.low.mean()
    steps = (found.high + found.low) / 2
    text = (
        f"{run.label}: {percent(high)} of A > 0 above, {percent(low)} of A < 0 below (both together"
        f" {percent(steps.min())} to {percent(steps.max())} by step); difference of the sides over their sum"
        f" {percent(found.imbalance)}"
    )
    return Finding(holds=bool((high + low) / 2 >= 0.01 and found.imbalance <= 0.2), text=text)


def evens_gradient(vanilla: Run, guard: Run) -> Finding:
    """The spread of the gradient's shares over steps in both."""
    before, after = measure.gradient_spread(vanilla), measure.gradient_spread(guard)
    text = f"{times(before)} ({vanilla.label}) against {times(after)} ({guard.label})"
    return Finding(holds=None if np.isnan(before) or np.isnan(after) else after <= before / 2, text=text)


def over_optimises(run: Run) -> Finding:
    """The trend of the proxy and of every gold."""
    rise = measure.trend(measure.proxy(run)) if measure.proxy_name(run) else None
    golds = {name: measure.gold(run, name) for name in measure.gold_names([run])}
    falls = {name: change for name, curve in golds.items() if (change := measure.trend(curve))}
    if rise is None or not falls:
        return Finding(holds=None, text=f"{run.label}: fewer than four evaluations, or no gold")
    said = ", ".join(f"{name} {estimate(change)}" for name, change in falls.items())
    down = any(change.significance < -CLEAR for change in falls.values())
    text = f"{run.label}: change along the run, by its trend: proxy {estimate(rise)}; {said}"
    return Finding(holds=down and rise.significance > CLEAR, text=text)


def is_better(runs: Sequence[Run]) -> Finding:
    """Every gold at matched proxy, Guard against vanilla."""
    found = {name: pair for name in measure.gold_names(runs) if (pair := matched(runs, name))}
    if not found or not _same(runs, "reward"):
        return Finding(
            holds=None, text="needs vanilla and Guard on one reward, four evaluations each, at proxies that overlap"
        )
    clear = [difference.significance for _, _, difference in found.values()]
    proxies = common_proxies(runs)
    lines = [
        f"over proxies {proxies[0]:.3f} to {proxies[-1]:.3f}",
        *(f"{name}: vanilla {a.value:.3f}, Guard {b.value:.3f}; {estimate(d)}" for name, (a, b, d) in found.items()),
    ]
    return Finding(holds=max(clear) > CLEAR and min(clear) >= -CLEAR, text="\n".join(lines))


def matched(runs: Sequence[Run], name: str) -> tuple[Estimate, Estimate, Estimate] | None:
    """A gold at the proxies that all vanilla and Guard runs passed: vanilla's, Guard's, and Guard's less vanilla's."""
    arms, proxies = (_arm(runs, "vanilla"), _arm(runs, "guard")), common_proxies(runs)
    vanilla, guard = (_average([measure.at_proxy(run, name, proxies) for run in arm]) for arm in arms)
    if vanilla is None or guard is None:
        return None
    difference = Estimate(value=guard.value - vanilla.value, error=float(np.hypot(guard.error, vanilla.error)))
    return vanilla, guard, difference


def common_proxies(runs: Sequence[Run]) -> Float[ndarray, " G"]:
    """Proxy values that all vanilla and Guard runs passed."""
    return measure.common_proxies([*_arm(runs, "vanilla"), *_arm(runs, "guard")])


def _average(found: Sequence[Estimate | None]) -> Estimate | None:
    """The mean over runs; its error is the evaluations' or, from two runs on, that between runs if it is larger."""
    kept = [one for one in found if one is not None]
    if not kept:
        return None
    values, errors = np.array([one.value for one in kept]), np.array([one.error for one in kept])
    between = values.std(ddof=1) / np.sqrt(len(kept)) if len(kept) > 1 else 0.0
    within = np.sqrt(np.square(errors).sum()) / len(kept)
    return Estimate(value=float(values.mean()), error=float(np.maximum(within, between)))


def _cautions(runs: Sequence[Run]) -> tuple[str, ...]:
    """Why a difference between the arms may have other reasons than the objective."""
    arms = _arm(runs, "vanilla"), _arm(runs, "guard")
    if not all(arms):
        return ()
    found = [_seed_caution(arms), _clip_caution(arms), _setting_caution([*arms[0], *arms[1]])]
    return tuple(text for text in found if text)


def _seed_caution(arms: tuple[list[Run], list[Run]]) -> str:
    count = min(map(len, arms))
    if count == 1:
        return "One seed a side shows little: how much seeds differ is not in these errors."
    return f"{count} seeds a side: the error between runs is itself uncertain." if count < 5 else ""


def _clip_caution(arms: tuple[list[Run], list[Run]]) -> str:
    vanilla, guard = (float(np.mean([_clipped(run) for run in arm])) for arm in arms)
    if not max(vanilla, guard) > 1.5 * min(vanilla, guard):
        return ""
    return (
        f"The arms clip unequal shares of their rows (vanilla {percent(vanilla)}, Guard {percent(guard)}):"
        " a difference may come from the clip range instead of the ratio."
    )


def _clipped(run: Run) -> float:
    found = measure.clip(run)
    return float((found.high.mean() + found.low.mean()) / 2) if found else np.nan


def _setting_caution(runs: Sequence[Run]) -> str:
    keys = [k for k in differences(runs) if not k.startswith("clipping.") and k != "seed"]
    return f"The arms also differ in {', '.join(keys)}." if keys else ""


def number(value: float) -> str:
    """Three digits at most, small numbers with an exponent."""
    if np.isnan(value):
        return "-"
    return f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}".replace("e-0", "e-")


def percent(share: float) -> str:
    """A share in percent."""
    return "-" if np.isnan(share) else f"{100 * share:.3g} %" if share >= 0.001 or share == 0 else "under 0.1 %"


def times(value: float) -> str:
    """A factor."""
    return "-" if np.isnan(value) else f"{value:.3g}x"


def estimate(found: Estimate, digits: int = 3) -> str:
    """A signed number and its standard error, where there is one."""
    error = "" if np.isnan(found.error) else f" ± {found.error:.{digits}f}"
    return f"{found.value:+.{digits}f}{error}"


def _each(runs: Sequence[Run], look: Callable[[Run], Finding]) -> tuple[Finding, ...]:
    return tuple(look(run) for run in runs)


def _arm(runs: Sequence[Run], objective: str) -> list[Run]:
    return [run for run in runs if run.objective == objective]


def _same(runs: Sequence[Run], part: str) -> bool:
    return not any(key.startswith(f"{part}.") for key in differences(runs))


def _unmeasured(run: Run) -> Finding:
    return Finding(holds=None, text=f"{run.label}: not measured")


def _mean(found: Ratio, at: int) -> str:
    return f"{number(found.mean[at])} ± {number(found.error[at])}"


def _worst(found: Ratio) -> str:
    at = int(np.abs(found.shift).argmax())
    return f"{number(found.mean[at])} at step {found.step[at]}, {number(abs(found.shift[at]))} of its spread"


def _basis(found: Ratio) -> str:
    return f"{found.rows:.3g} rows a step in each of {found.iterations} iterations"
