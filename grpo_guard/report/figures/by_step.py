"""Figures over the denoising steps: ratios, clipped rows, gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from grpo_guard.report import per_step
from grpo_guard.report.arms import Arm, mean_label, seed_label
from grpo_guard.report.figures.panels import STEP, CurveFigure, Line, Panel
from grpo_guard.report.per_step import RatioKind
from grpo_guard.report.runs import Run
from grpo_guard.report.settling import Settled
from grpo_guard.report.statistics import HALF_WIDTH
from grpo_guard.schema import record

RATIO_TITLES: dict[RatioKind, str] = {"raw": "raw ratio", "norm": "normalised ratio"}


@record
class ByStep:
    """A quantity at each trained step."""

    step: Int[ndarray, " S"]
    """The steps."""
    value: Float[ndarray, " S"]
    """The quantity."""
    error: Float[ndarray, " S"]
    """Its standard error; NaN if it is not known."""


Measure = Callable[[Run], ByStep | None]


def ratios(arms: Sequence[Arm], settled: Settled) -> CurveFigure:
    """Return mean, spread and mean over spread of the raw and the normalised ratio."""
    panel = partial(_panel, arms, settled)
    panels = []
    for kind, name in RATIO_TITLES.items():
        panels += [
            panel(f"{name}: mean \N{MINUS SIGN} 1", _ratio(kind, "mean"), baseline=0.0),
            panel(f"{name}: spread", _ratio(kind, "std"), is_logarithmic=True),
            panel(f"{name}: mean over spread", _ratio(kind, "shift"), baseline=0.0),
        ]
    return _figure(
        "ratios",
        "Ratios by step",
        "A mean below 1 is a left shift, which the clip does not see; a flat spread means that one"
        " clip range suits all steps. Both ratios are from the same forward passes, whichever is"
        " optimised, averaged over all iterations without the first update of each.",
        panels,
    )


def clipped_rows(arms: Sequence[Arm], settled: Settled) -> CurveFigure:
    """Return how often the clip acts on rows with a positive and with a negative advantage."""
    panel = partial(_panel, arms, settled)
    panels = [
        panel("above the range, of rows with A > 0", _clipped("high"), unit="%"),
        panel("below the range, of rows with A < 0", _clipped("low"), unit="%"),
    ]
    return _figure(
        "clip_fractions",
        "Clipped rows",
        "Only in these rows does the clip hold the policy back; if it acts on both sides alike, the"
        " two panels look the same.",
        panels,
    )


def gradient_shares(arms: Sequence[Arm], settled: Settled) -> CurveFigure:
    """Return each step's share of the gradient."""
    counts = {per_step.steps_per_iteration(run) for arm in arms for run in arm.runs} - {0}
    even = 1 / counts.pop() if len(counts) == 1 else None
    panels = [_panel(arms, settled, "share of the gradient", _gradient, unit="%", baseline=even)]
    return _figure(
        "gradient_shares",
        "Gradient by step",
        "Each step's share of the norm of the loss's gradient with respect to the velocity,"
        " averaged over all iterations; on the thin line all steps share alike.",
        panels,
    )


def _figure(name: str, title: str, reading: str, panels: Sequence[Panel]) -> CurveFigure:
    filled = tuple(panel for panel in panels if panel.lines)
    return CurveFigure(name=name, title=title, reading=reading, axes=(STEP,), panels=filled)


def _panel(
    arms: Sequence[Arm],
    settled: Settled,
    title: str,
    measure: Measure,
    *,
    unit: str = "",
    is_logarithmic: bool = False,
    baseline: float | None = None,
) -> Panel:
    lines: list[Line] = []
    for arm in arms:
        if len(arm.runs) > 1:
            named = [(run, seed_label(run)) for run in arm.runs]
            lines += _lines(arm, named, measure, is_mean=False)
        kept = settled.arm_of(arm)
        if kept:
            lines += _lines(arm, [(kept.pooled, mean_label(kept))], measure, is_mean=True)
    return Panel(
        title=title,
        lines=tuple(lines),
        unit=unit,
        is_logarithmic=is_logarithmic,
        baseline=baseline,
    )


def _lines(
    arm: Arm, named: Sequence[tuple[Run, str]], measure: Measure, *, is_mean: bool
) -> list[Line]:
    lines = []
    for run, label in named:
        measured = measure(run)
        if measured is None or not len(measured.step):
            continue
        step, value, error = break_lines(measured.step, measured.value, measured.error)
        half = HALF_WIDTH * error if is_mean else np.full(len(step), np.nan)
        lines.append(
            Line(
                arm=arm.label,
                color=arm.color,
                label=label,
                is_mean=is_mean,
                x={STEP: step.astype(float)},
                y=value,
                low=value - half,
                high=value + half,
            )
        )
    return lines


def break_lines(steps: Int[ndarray, " S"], *values: Float[ndarray, " S"]) -> tuple[ndarray, ...]:
    """Return every step from the first to the last, and the values with NaN at missing steps.

    A line then breaks at a step that was never trained.
    """
    all_steps = np.arange(steps[0], steps[-1] + 1)
    broken = np.full((len(values), len(all_steps)), np.nan)
    broken[:, np.isin(all_steps, steps)] = values
    return all_steps, *broken


def _ratio(kind: RatioKind, what: str) -> Measure:
    def measure(run: Run) -> ByStep | None:
        ratio = per_step.ratio_statistics(run, kind)
        if ratio is None:
            return None
        unknown = np.full(len(ratio.step), np.nan)
        spread = np.where(ratio.std > 0, ratio.std, np.nan)
        errors = {"mean": ratio.error, "std": unknown, "shift": ratio.error / spread}
        return ByStep(step=ratio.step, value=getattr(ratio, what), error=errors[what])

    return measure


def _clipped(side: str) -> Measure:
    def measure(run: Run) -> ByStep | None:
        shares = per_step.clipped_shares(run)
        if shares is None:
            return None
        value = getattr(shares, side)
        return ByStep(step=shares.step, value=value, error=np.full(len(value), np.nan))

    return measure


def _gradient(run: Run) -> ByStep | None:
    step, value = per_step.step_means(run, "grad_share")
    return ByStep(step=step, value=value, error=np.full(len(value), np.nan)) if len(step) else None
