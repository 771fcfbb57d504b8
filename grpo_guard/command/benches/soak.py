"""A long run of small iterations: what grows in memory, open files, threads and the run folder."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar
from unittest.mock import patch

import numpy as np
from hydra import compose, initialize_config_dir
from rich.table import Table

from grpo_guard.console import cli
from grpo_guard.diagnostics.memory import held_bytes
from grpo_guard.experiment import Experiment
from grpo_guard.metrics import Metrics
from grpo_guard.run_folder import OpenRun
from grpo_guard.schema import record
from grpo_guard.session import Session
from grpo_guard.train import train

SMALL = [
    "backbone=sd3_tiny_lora", "reward=statistics", "watch=none", "logger=none", "ema=average",
    "data.prompts=2", "data.repeats=2", "steps=2", "steps_per_sample=null", "updates=2",
    "microbatch=2", "selftest=false", "eval.prompts=2", "eval.pictures=2", "eval.steps=1",
    "eval.every=50", "checkpoint.export_every=50", "strategy.threads=1",
]  # fmt: skip
"""Overrides for iterations of a fraction of a second, each with a state."""
FLUSHED = 10
"""Iterations between two additions to histograms.npz."""
WARM_UP = 0.2
"""Share of the iterations after which nothing may grow any more."""


@record
class Reading:
    """What a process holds after an iteration."""

    bytes: int
    """Memory."""
    files: int
    """Open files."""
    threads: int
    """Threads of Python."""
    folder: Mapping[str, int]
    """Bytes of each entry of the run folder."""


class MeteredRun(OpenRun):
    """A run folder that reads what the process holds after every iteration."""

    readings: ClassVar[list[Reading]] = []

    def finish_iteration(self, session: Session, iteration: int, metrics: Metrics) -> None:
        """Finish the iteration, then read."""
        super().finish_iteration(session, iteration, metrics)
        self.readings.append(
            Reading(
                bytes=held_bytes(session.ranks.device),
                files=len(os.listdir("/proc/self/fd")),
                threads=threading.active_count(),
                folder=measure_folder(Path(session.exp.output)),
            )
        )


def measure_folder(folder: Path) -> dict[str, int]:
    """Return the bytes of each entry of a folder."""
    sizes: dict[str, int] = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            entry = path.relative_to(folder).parts[0]
            try:
                sizes[entry] = sizes.get(entry, 0) + path.stat().st_size
            except FileNotFoundError:
                continue  # a state that was being replaced
    return sizes


def soak(iterations: int, overrides: Sequence[str]) -> Table:
    """Train so many small iterations; return what grew after the warm-up."""
    MeteredRun.readings.clear()
    with TemporaryDirectory() as folder, initialize_config_dir(cli.CONF, version_base="1.3"):
        named = [*SMALL, f"iterations={iterations}", f"output={folder}", *overrides]
        experiment = cli.build(compose("train", named))
        with patch("grpo_guard.run_folder.OpenRun", MeteredRun):
            train(experiment, {})
    return make_table(MeteredRun.readings, count_writes(experiment, iterations))


def make_table(readings: Sequence[Reading], writes: Mapping[str, Sequence[int]]) -> Table:
    """Make a table of what a run held at the end of the warm-up and at its end.

    The size of the folder is predicted from that after the warm-up: each entry is `writes` of equal
    size, of which it has a number after every iteration. Others, such as state/, do not grow.
    """
    start = int(WARM_UP * len(readings))
    first, last = readings[start - 1], readings[-1]
    kept = np.array([reading.bytes for reading in readings[start:]], dtype=float)
    slope = 100 * np.polyfit(np.arange(len(kept)), kept, 1)[0] / kept.mean()
    table = Table("what", f"after {start}", f"after {len(readings)}", "growth")
    table.add_row(
        "memory", f"{first.bytes / 1e6:.1f} MB", f"{last.bytes / 1e6:.1f} MB",
        f"{slope:+.3%} per 100 iterations",
    )  # fmt: skip
    for name in ("files", "threads"):
        counts = [getattr(reading, name) for reading in readings[start:]]
        table.add_row(
            name, str(counts[0]), str(counts[-1]), f"between {min(counts)} and {max(counts)}"
        )
    for name, size in last.folder.items():
        before = first.folder.get(name, 0)
        written = writes.get(name, [1] * len(readings))
        expected = before * written[-1] / max(1, written[start - 1])
        table.add_row(
            name,
            f"{before / 1e3:.1f} kB",
            f"{size / 1e3:.1f} kB",
            f"predicted {expected / 1e3:.1f} kB",
        )
    return table


def count_writes(experiment: Experiment, iterations: int) -> dict[str, list[int]]:
    """Return how often each entry of the folder has been written after every iteration."""
    done = range(1, iterations + 1)
    evaluations = [(count - 1) // experiment.eval.every + 1 for count in done]
    return {
        "metrics.jsonl": [*done],
        "histograms.npz": [count // FLUSHED for count in done],
        "samples": evaluations,
        "prompt_scores.jsonl": evaluations,
        "checkpoints": [count // experiment.checkpoint.export_every for count in done],
    }
