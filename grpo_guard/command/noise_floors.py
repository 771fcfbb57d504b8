"""What scripts/preflight.py does once its settings are composed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from grpo_guard.console import cli
from grpo_guard.diagnostics.memory import explain_shortage
from grpo_guard.diagnostics.noise_floor import (
    WORRYING_SHARE,
    NoiseFloor,
    Probe,
    describe_floor,
    describe_rounding,
    list_remedies,
    make_probe,
    measure_noise_floor,
    measure_rounding,
    nudge,
    replay_in,
    round_latents,
)
from grpo_guard.old_policy.replay import ReplayedOldPolicy
from grpo_guard.probe import draw_probe
from grpo_guard.session import Session, prepare
from grpo_guard.types import Rows, Schedule

AS_TRAINED = "as trained"
ONE_ROW = "one row at a time"
NO_GUIDANCE = "one row at a time, no guidance"


def measure_and_print(cfg: DictConfig) -> None:
    """Measure the floor of a composed run, and print it."""
    experiment = cli.build(cfg)
    cli.hide_progress_bars()
    session = prepare(experiment)
    with explain_shortage(session.ranks.device, "rollout"):
        print_floors(session)


def print_floors(session: Session) -> None:
    """Measure the floor under each condition; print the answer, then a table of each.

    In half precision the answer is what a step of the optimizer shows: before it, the floor can be
    exactly 0. The policy of the session computes in float32 afterwards.
    """
    console = Console()
    probe = draw_probe(session, session.policy)
    floors = measure_floors(session, probe)
    unmoved = answer(floors[AS_TRAINED], probe.rows)
    if session.model.dtype != torch.float32:
        console.print(describe_moved(session, probe), soft_wrap=True)
        unmoved = f"before that step, {unmoved}"
    console.print(unmoved, soft_wrap=True)
    for name, floor in floors.items():
        console.print(floor_table(name, floor, session.schedule(0)))
    console.print(
        f"guidance multiplies the noise by {guidance_factor(floors):.2f}"
        " (norm, 99th percentile, median step)"
    )


def describe_moved(session: Session, probe: Probe) -> str:
    """Say in one line what rounding does once the weights have moved by an optimizer step.

    The policy computes in float32 afterwards.
    """
    exp = session.exp
    size = session.learner.lr
    dtype = str(session.model.dtype).removeprefix("torch.")

    def widen(probe: Probe) -> Probe:
        session.model.widen()
        return replay_in(ReplayedOldPolicy(), probe)

    rounding = measure_rounding(
        probe,
        widen,
        partial(nudge, session.learner.parameters, size),
        exp.clipping,
        session.limits(),
    )
    return describe_rounding(rounding, dtype, size, exp.old_policy)


def answer(floor: NoiseFloor, rows: Rows) -> str:
    """Say in one line how many times the noise floor the clip range is, and what to change."""
    share = float(floor.share[floor.worst])
    if share == 0:
        return describe_floor(floor, rows)
    step = floor.steps[floor.worst]
    line = (
        f"the clip range is {1 / share:.2g} times the noise floor at step {step}, the worst step"
        " (99th percentile)"
    )
    if share <= WORRYING_SHARE:
        return line
    return f"{line}: the clip acts on noise; set {', or '.join(list_remedies(floor, rows))}"


def measure_floors(session: Session, probe: Probe) -> dict[str, NoiseFloor]:
    """Measure the floor under each condition."""
    exp = session.exp

    def measure(probe: Probe) -> NoiseFloor:
        return measure_noise_floor(probe, exp.clipping, session.limits())

    floors = {AS_TRAINED: measure(probe), ONE_ROW: measure(replace(probe, microbatch=1))}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        rounded = round_latents(probe.trajectory, dtype)
        # The old means, if any, belong to the latents, so they are computed anew.
        again = make_probe(exp.old_policy, probe.policy, rounded, probe.rows, probe.microbatch)
        floors[f"latents stored as {name}"] = measure(again)
    unguided = draw_probe(session, session.model.unguided())
    floors[NO_GUIDANCE] = measure(replace(unguided, microbatch=1))
    return floors


def guidance_factor(floors: Mapping[str, NoiseFloor]) -> float:
    """Return the floor with guidance over that without, in the median step; nan if that is 0."""
    guided = floors[ONE_ROW].norm[:, 1]
    unguided = floors[NO_GUIDANCE].norm[:, 1]
    return float((guided / unguided).median()) if bool((unguided > 0).all()) else float("nan")


def floor_table(name: str, floor: NoiseFloor, schedule: Schedule) -> Table:
    """Make a table with one line per trained step."""
    quantiles = ("raw median", "raw 99 %", "norm median", "norm 99 %")
    table = Table("step", "t", *quantiles, "of clip range", title=name)
    for row, step in enumerate(floor.steps):
        values = [*floor.raw[row].tolist(), *floor.norm[row].tolist()]
        table.add_row(
            str(step),
            f"{schedule.t[step]:.3f}",
            *(f"{value:.1e}" for value in values),
            f"{floor.share[row]:.2g}",
        )
    return table
