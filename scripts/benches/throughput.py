"""The tables of `bench.py throughput`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from rich.progress import track
from rich.table import Table

from benches.memory import GIB, RECIPES, SHORT, TRAINED, composed, unjudged
from grpo_guard.cost.flops import PEAKS, Work, peak, predict
from grpo_guard.cost.random_weights import Untrained
from grpo_guard.experiment import Experiment
from grpo_guard.session import prepare
from grpo_guard.train import iterate, peak_bytes

SHARE = 0.4  # of what a GPU could do, for hours on paper
CARD = "H100"
Seconds = Sequence[Mapping[str, float]]
"""Of the phases of some iterations."""


def on_paper() -> Table:
    """What the recipes ask for, and how long a GPU works on it."""
    hours = f"{CARD} hours for 1000 iterations, MFU {SHARE}"
    shown = Table(
        "backbone", "trained", "TFLOP an image drawn", "and trained on", "PFLOP an iteration", hours
    )
    for backbone, recipe in RECIPES.items():
        for trained, overrides in TRAINED.items():
            exp = composed([f"experiment={recipe}", *overrides])
            work, images = predict(exp), exp.batch_sizes.samples
            whole = work.rollout + work.update
            spent = 1000 * whole / (SHARE * PEAKS[CARD]) / 3600
            each = [f"{part / images / 1e12:.3g}" for part in (work.rollout, work.update)]
            shown.add_row(backbone, trained, *each, f"{whole / 1e15:,.0f}", f"{spent:,.0f}")
    return shown


def measured(overrides: Sequence[str], rounds: int) -> Table:
    """Whole iterations with random weights here: pace, and the share of what this device could do."""
    exp = unjudged(composed([*SHORT, *overrides]))
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    seconds = timed(replace(exp, backbone=Untrained(recipe=exp.backbone)), rounds)
    title = f"{name}, {peak_bytes() / GIB:.1f} GiB at the most"
    shown = Table("phase", "s", "images/s", "TFLOP", "TFLOP/s", "MFU", title=title)
    for phase, cells in lines(predict(exp), exp.batch_sizes.samples, seconds, peak(name)).items():
        shown.add_row(phase, *cells)
    return shown


def timed(exp: Experiment, rounds: int) -> Seconds:
    """Iterations of an experiment after one that is not counted."""
    session, found = prepare(exp), []
    for iteration in track(range(rounds + 1), "timing"):
        session, metrics = iterate(session, iteration)
        found.append({phase: metrics[f"time/{phase}"].value for phase in ("rollout", "update")})
    return found[1:]


def lines(
    work: Work, images: int, seconds: Seconds, most: float | None
) -> dict[str, tuple[str, ...]]:
    """Medians of each phase, and of both."""
    parts = {"rollout": work.rollout, "update": work.update, "both": work.rollout + work.update}
    spent = {
        phase: statistics.median(row[phase] for row in seconds) for phase in ("rollout", "update")
    }
    spent["both"] = statistics.median(row["rollout"] + row["update"] for row in seconds)
    return {phase: line(flop, images, spent[phase], most) for phase, flop in parts.items()}


def line(flop: float, images: int, seconds: float, most: float | None) -> tuple[str, ...]:
    """The cells of a phase."""
    pace = flop / seconds
    used = f"{pace / most:.1%}" if most else "-"
    return (
        f"{seconds:.2f}",
        f"{images / seconds:.3g}",
        f"{flop / 1e12:.3g}",
        f"{pace / 1e12:.3g}",
        used,
    )
