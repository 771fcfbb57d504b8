"""The tables of `bench.py throughput`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from rich.table import Table

from grpo_guard.command.benches.memory import (
    GIB,
    NO_SCORERS,
    RECIPES,
    TRAINED,
    compose_experiment,
    remove_golds,
)
from grpo_guard.cost.flops import PEAK_FLOPS, Work, find_peak, predict_work
from grpo_guard.cost.random_weights import Untrained
from grpo_guard.diagnostics.memory import peak_bytes
from grpo_guard.session import Session, prepare
from grpo_guard.train import iterate

ASSUMED_MFU = 0.4
"""Share of a GPU's peak in the hours that are calculated; good trainers reach 0.3 to 0.5."""
CARD = "H100"
"""The GPU of the hours that are calculated."""
PhaseSeconds = Mapping[str, float]
"""Seconds of an iteration by phase, `rollout` and `update`."""


def calculate_recipes() -> Table:
    """Calculate the operations of the recipes, and how long a GPU takes for 1000 iterations."""
    hours = f"{CARD} hours for 1000 iterations, MFU {ASSUMED_MFU}"
    columns = ["TFLOP to draw an image", "TFLOP to train on it", "PFLOP per iteration", hours]
    table = Table("backbone", "trained", *columns)
    for backbone, recipe in RECIPES.items():
        for trained, overrides in TRAINED.items():
            exp = compose_experiment([f"experiment={recipe}", *overrides])
            work = predict_work(exp)
            images = exp.batch_sizes.samples
            whole = work.rollout + work.update
            seconds = 1000 * whole / (ASSUMED_MFU * PEAK_FLOPS[CARD])
            per_image = [f"{part / images / 1e12:.3g}" for part in (work.rollout, work.update)]
            cells = [*per_image, f"{whole / 1e15:,.0f}", f"{seconds / 3600:,.0f}"]
            table.add_row(backbone, trained, *cells)
    return table


def measure_throughput(overrides: Sequence[str], rounds: int) -> Table:
    """Time iterations with random weights on this device, and relate them to its peak."""
    session = prepare_untrained(overrides)
    device = session.ranks.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    # Each iteration is told as it ends: a run that is stopped, or has no memory left, says much.
    seconds: list[PhaseSeconds] = []
    for number, phases in enumerate(time_iterations(session, rounds + 1)):
        print(describe_iteration(number, phases), flush=True)
        seconds.append(phases)
    title = f"{name}, at most {peak_bytes(device) / GIB:.1f} GiB"
    table = Table("phase", "s", "images/s", "TFLOP", "TFLOP/s", "MFU", title=title)
    exp = session.exp
    work = predict_work(replace(exp, backbone=exp.backbone.recipe))
    # The first one compiles, chooses kernels and fills the allocator.
    rows = make_rows(work, exp.batch_sizes.samples, seconds[1:], find_peak(name))
    for phase, cells in rows.items():
        table.add_row(phase, *cells)
    return table


def prepare_untrained(overrides: Sequence[str]) -> Session:
    """Load a run with random weights, and without the rewards of its recipe."""
    exp = remove_golds(compose_experiment([*NO_SCORERS, *overrides]))
    return prepare(replace(exp, backbone=Untrained(recipe=exp.backbone)))


def time_iterations(session: Session, count: int) -> Iterator[PhaseSeconds]:
    """Run iterations of a session, and yield the seconds of each.

    A phase ends when its numbers have come to the CPU, so a GPU has computed all of it. A reward
    that is not asynchronous is scored within the rollout.
    """
    for iteration in range(count):
        session, metrics = iterate(session, iteration)
        yield {phase: metrics[f"time/{phase}"].value for phase in ("rollout", "update")}


def describe_iteration(number: int, seconds: PhaseSeconds) -> str:
    """Say in a line what an iteration took."""
    phases = ", ".join(f"{phase} {spent:.2f} s" for phase, spent in seconds.items())
    return f"iteration {number}: {phases}" + (" (does not count)" if number == 0 else "")


def make_rows(
    work: Work, images: int, seconds: Sequence[PhaseSeconds], peak: float | None
) -> dict[str, tuple[str, ...]]:
    """Make the cells of each phase, and of both together, from median seconds.

    `images` are those of an iteration; `peak` is the device's operations per second, if known.
    """
    rollout = statistics.median(row["rollout"] for row in seconds)
    update = statistics.median(row["update"] for row in seconds)
    both = statistics.median(row["rollout"] + row["update"] for row in seconds)
    return {
        "rollout": make_cells(work.rollout, images, rollout, peak),
        "update": make_cells(work.update, images, update, peak),
        "both": make_cells(work.rollout + work.update, images, both, peak),
    }


def make_cells(flops: float, images: int, seconds: float, peak: float | None) -> tuple[str, ...]:
    """Make the cells of a phase that takes so many operations and seconds."""
    rate = flops / seconds
    return (
        f"{seconds:.2f}",
        f"{images / seconds:.3g}",
        f"{flops / 1e12:.3g}",
        f"{rate / 1e12:.3g}",
        f"{rate / peak:.1%}" if peak else "-",
    )
