"""The tables of `bench.py rounding`: what half precision adds to a log-ratio, and what helps.

The change of the velocity after a step is computed in float64, in the recipe's dtype, in float32
with single kinds of operations rounded, and by its derivative along the step (old_policy=tangent).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from grpo_guard import rng
from grpo_guard.command.benches.iterations import prepare_sessions
from grpo_guard.command.benches.rounded_operations import SITES, RoundAt
from grpo_guard.diagnostics.noise_floor import Probe, nudge
from grpo_guard.gaussian import trailing
from grpo_guard.old_policy.tangent import choose_scale, differentiate
from grpo_guard.parallel.learner import trainable_parameters
from grpo_guard.probe import draw_probe
from grpo_guard.schema import record
from grpo_guard.session import Session
from grpo_guard.types import Rows

SETTINGS = (
    "backbone=sd3_tiny_lora", "backbone.dtype=bfloat16", "backbone.guidance=4.5", "data.prompts=4",
    "data.repeats=4", "updates=1", "microbatch=16", "steps_per_sample=null", "reward=statistics",
    "watch=none", "eval.prompts=2", "eval.pictures=2", "strategy.threads=1",
)  # fmt: skip
"""Small adapters with guidance, unless the overrides say otherwise."""
STEP = 1e-4
"""Step whose rounding is taken apart: how far Adam moves every weight at this learning rate."""
STEPS = (1e-5, 1e-4, 1e-3, 1e-2)
"""Steps of the second table.

Smaller ones are lost in the reference: diffusers computes the variances of RMSNorm in float32.
"""
EXPLICIT_BITS = {torch.bfloat16: 7, torch.float16: 10}
"""Bits of a number behind its leading one."""
TF32_BITS = 10
FLOAT8_BITS = 3
"""Of float8 in the format e4m3, whose range of the exponent is smaller than what is tried here."""


@record
class Case:
    """What is compared: the rows, the policy in several precisions, and the clip range."""

    probe: Probe
    """Rows that the half-precision policy drew."""
    wide: nn.Module
    """The policy in float32."""
    exact: nn.Module
    """The policy in float64."""
    limits: tuple[Float[Tensor, " R"], Float[Tensor, " R"]]
    """The clip range of each row."""


@record
class Finding:
    """The errors of one way to compute the change of the velocity, over all rows."""

    name: str
    """How the change is computed, in words."""
    velocity: float
    """Median over the rows of |error of the change| / |change|."""
    log_ratio: float
    """Standard deviation of the log-ratio's error over that of the log-ratio."""
    clipped: float
    """Share of rows whose log-ratio lies outside the clip range."""


@record
class StepFindings:
    """What was found of one size of step."""

    step: float
    """How far every weight moves."""
    exact: Finding
    """The change in float64."""
    difference: Finding
    """The difference of two velocities in half precision."""
    derivative: Finding
    """The derivative in half precision."""


def prepare_case(overrides: Sequence[str]) -> Case:
    """Load the policy and draw rows."""
    session = prepare_sessions(["guard"], [*SETTINGS, *overrides])["guard"]
    probe = draw_probe(session, session.policy)
    low, high = (limit.to(session.ranks.device)[probe.rows.step] for limit in session.limits())
    return Case(
        probe=probe,
        wide=_convert(session, torch.float32),
        exact=_convert(session, torch.float64),
        limits=(low, high),
    )


def _convert(session: Session, dtype: torch.dtype) -> nn.Module:
    """Return a copy of the policy that computes in `dtype`, with the weights as they are."""
    policy: Any = copy.deepcopy(session.policy)
    policy.to(dtype)
    policy.dtype = dtype
    converted: nn.Module = policy
    return converted


def compare_sites(case: Case) -> list[Finding]:
    """Compare ways to compute the change of a step of `STEP`."""
    probe = case.probe
    policy: Any = probe.policy
    dtype = str(policy.dtype).removeprefix("torch.")

    def round_at(site: str, bits: int) -> Callable[[], Tensor]:
        return partial(subtract, case.wide, probe, STEP, RoundAt([site], bits))

    bits = EXPLICIT_BITS[policy.dtype]
    ways: dict[str, Callable[[], Tensor]] = {
        f"difference in {dtype}": partial(subtract, policy, probe, STEP),
        "difference in float32": partial(subtract, case.wide, probe, STEP),
        **{f"  only {site}": round_at(site, bits) for site in SITES},
        "  only inputs of matrices, TF32": round_at("inputs of matrices", TF32_BITS),
        "  only inputs of matrices, float8": round_at("inputs of matrices", FLOAT8_BITS),
        f"derivative in {dtype}, old weights": partial(derive, policy, probe, STEP, 0.0),
        f"derivative in {dtype}, middle": partial(derive, policy, probe, STEP, 0.5),
    }
    exact = subtract(case.exact, probe, STEP)
    ways = {"float64": lambda: exact, **ways}
    return [judge(case, name, ways[name](), exact) for name in track(ways, "measuring")]


def compare_steps(case: Case) -> list[StepFindings]:
    """Compare the difference and the derivative at each of `STEPS`."""
    rows = []
    for step in track(STEPS, "measuring"):
        exact = subtract(case.exact, case.probe, step)
        difference = subtract(case.probe.policy, case.probe, step)
        derivative = derive(case.probe.policy, case.probe, step, 0.5)
        row = StepFindings(
            step=step,
            exact=judge(case, "float64", exact, exact),
            difference=judge(case, "difference", difference, exact),
            derivative=judge(case, "derivative", derivative, exact),
        )
        rows.append(row)
    return rows


@torch.no_grad()
def subtract(
    policy: Any,
    probe: Probe,
    step: float,
    rounding: AbstractContextManager[object] = nullcontext(),
) -> Float[Tensor, "R ..."]:
    """Return the velocities after a step, less those before it, in float64."""
    with rounding:
        before = call(policy, probe)
        with nudge(trainable_parameters(policy), step):
            return call(policy, probe) - before


@torch.no_grad()
def derive(policy: Any, probe: Probe, step: float, at: float) -> Float[Tensor, "R ..."]:
    """Return the velocities' derivative along a step; `at` is 0 at its start and 1 at its end."""
    old = {n: p.detach().clone() for n, p in policy.named_parameters() if p.requires_grad}
    with nudge(trainable_parameters(policy), step):
        change = {n: p - old[n] for n, p in policy.named_parameters() if p.requires_grad}
    weights = {name: weight + at * change[name] for name, weight in old.items()}
    scale = choose_scale(change.values())
    scaled = {name: scale * part for name, part in change.items()}
    parts = [
        differentiate(policy, weights, scaled, *read_inputs(probe, part))
        for part in probe.rows.split(probe.microbatch)
    ]
    return torch.cat(parts).double() / scale


def call(policy: Any, probe: Probe) -> Float[Tensor, "R ..."]:
    """Return the velocities of all rows."""
    parts = probe.rows.split(probe.microbatch)
    return torch.cat([policy(*read_inputs(probe, part)).double() for part in parts])


def read_inputs(probe: Probe, rows: Rows) -> tuple[Any, ...]:
    """Return latents, times and prompts of some rows."""
    trajectory = probe.trajectory
    group = trajectory.batch.group[rows.sample]
    x = trajectory.x[rows.sample, rows.step]
    return x, trajectory.schedule.t[rows.step], trajectory.condition[group]


def judge(
    case: Case, name: str, change: Float[Tensor, "R ..."], exact: Float[Tensor, "R ..."]
) -> Finding:
    """Compare a change of the velocities with the exact one."""
    errors = (change - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    ours, theirs = (log_ratio(case.probe, v) for v in (change, exact))
    low, high = case.limits
    return Finding(
        name=name,
        velocity=float(errors.median()),
        log_ratio=float((ours - theirs).std() / theirs.std()),
        clipped=float(((ours < low) | (ours > high)).double().mean()),
    )


def log_ratio(probe: Probe, change: Float[Tensor, "R ..."]) -> Float[Tensor, " R"]:
    """Return RatioNorm's log-ratio of a change of the velocities, in float64."""
    trajectory, rows = probe.trajectory, probe.rows
    samples = trajectory.batch.sample[rows.sample]
    eps = rng.noise(trajectory.address, samples, rows.step, change.shape[1:]).double()
    gain = trailing(trajectory.schedule.v_gain[rows.step].double(), change)
    return (eps * gain * change).flatten(1).mean(1)


def make_site_table(findings: Sequence[Finding]) -> Table:
    """Make a table with one line per way to compute the change."""
    title = f"after a step of {STEP:g}; errors over what they are errors of"
    table = Table("velocities' change", "its error", "log r's error", "rows clipped", title=title)
    for finding in findings:
        table.add_row(
            finding.name,
            _shorten(finding.velocity),
            _shorten(finding.log_ratio),
            f"{finding.clipped:.0%}",
        )
    return table


def make_step_table(rows: Sequence[StepFindings]) -> Table:
    """Make a table with one line per step."""
    title = "log r's error over its spread, and rows clipped"
    table = Table("step", "difference", "derivative", title=title)
    for column in ("clipped: exact", "difference", "derivative"):
        table.add_column(column)
    for row in rows:
        ways = (row.difference, row.derivative)
        errors = [_shorten(finding.log_ratio) for finding in ways]
        clipped = [f"{finding.clipped:.0%}" for finding in (row.exact, *ways)]
        table.add_row(f"{row.step:g}", *errors, *clipped)
    return table


def _shorten(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.2g}"
