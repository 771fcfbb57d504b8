"""Time iterations of several variants of an experiment, side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from unittest.mock import patch

from hydra import compose, initialize_config_dir
from rich.progress import track
from rich.table import Table
from torch import Tensor

from grpo_guard.clipping import Limits
from grpo_guard.console import cli
from grpo_guard.old_policy import OldMeans
from grpo_guard.session import Session, prepare
from grpo_guard.train import forward, iterate
from grpo_guard.types import Replay, Rows, Trajectory, map_tensors
from grpo_guard.watch.none import observe_nothing

PARTS = ("rollout", "reward", "update", "total")
"""Parts of an iteration that are timed."""
Seconds = Mapping[str, float]
"""Seconds of an iteration by part."""
Variant = tuple[Session, AbstractContextManager[object]]
"""A loaded experiment, and a context in which its iterations run."""


def prepare_sessions(objectives: Sequence[str], overrides: Sequence[str]) -> dict[str, Session]:
    """Load an experiment for each objective; all else is the same."""
    cli.hide_progress_bars()
    shared = [*overrides, "output=unused", "logger=none"]
    with initialize_config_dir(cli.CONF, version_base="1.3"):
        configs = {name: compose("train", [*shared, f"clipping={name}"]) for name in objectives}
    return {name: prepare(cli.build(config)) for name, config in configs.items()}


def as_variants(sessions: Mapping[str, Session]) -> dict[str, Variant]:
    """Make variants that run as they are."""
    return {name: (session, nullcontext()) for name, session in sessions.items()}


def time_variants(variants: Mapping[str, Variant], rounds: int) -> dict[str, list[Seconds]]:
    """Time iterations of all variants in turn, after one of each that does not count.

    Taking turns keeps ratios fair on a machine whose speed drifts.
    """
    seconds: dict[str, list[Seconds]] = {name: [] for name in variants}
    for iteration in track(range(rounds + 1), "timing"):
        for name, (session, context) in variants.items():
            with context:
                _, metrics = iterate(session, iteration)
            seconds[name].append({part: metrics[f"time/{part}"].value for part in PARTS})
    return {name: rows[1:] for name, rows in seconds.items()}


def make_table(seconds: Mapping[str, Sequence[Seconds]]) -> Table:
    """Make a table of median seconds, and of the total over the first variant's, round by round."""
    first = next(iter(seconds))
    table = Table("variant", *(f"{part} s" for part in PARTS), f"total / {first}")
    for name, rows in seconds.items():
        pairs = zip(rows, seconds[first], strict=True)
        ratios = [row["total"] / base["total"] for row, base in pairs]
        medians = [f"{statistics.median(row[part] for row in rows):.2f}" for part in PARTS]
        table.add_row(name, *medians, describe_ratios(ratios))
    return table


def describe_ratios(ratios: Sequence[float]) -> str:
    """Write the median of ratios, and their range."""
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def strip_diagnostics(session: Session) -> Variant:
    """Make a variant that measures nothing which the update itself does not need."""
    unwatched = replace(session, observe=observe_nothing)
    context = patch.multiple(
        "grpo_guard.train", accumulate=accumulate_bare, ratio_metrics=lambda *_: {}
    )
    return unwatched, context


def go_backward_everywhere(session: Session) -> Variant:
    """Make a variant that also goes backward where no row has an advantage."""

    def count_all(session: Session, rows: Rows) -> int:
        return len(rows.split(session.exp.batch_sizes.microbatch))

    return session, patch("grpo_guard.train.count_learning", count_all)


def accumulate_bare(
    session: Session,
    trajectory: Trajectory,
    old: OldMeans,
    rows: Rows,
    limits: Limits,
    count: int,
) -> Replay:
    """Do what `train.accumulate` does without measuring gradients."""
    _, replay = forward(session, trajectory, old, rows, limits)
    session.learner.backward((replay.objective.loss + replay.penalty).sum() / count)
    return map_tensors(replay, Tensor.detach)
