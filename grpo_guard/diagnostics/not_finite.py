"""Updates whose gradient is not finite: how many in a row, and which rows are to blame."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from grpo_guard.metrics import Metrics
from grpo_guard.types import Replay, Trajectory


def count_skipped(before: int, updates: Iterable[Metrics]) -> tuple[int, int]:
    """Return how many updates in a row were skipped: until now, and at most.

    `before` is how many there were until these updates.
    """
    count = most = before
    for metrics in updates:
        count = count + 1 if metrics["update/skipped"].value else 0
        most = max(most, count)
    return count, most


def write_broken_rows(file: Path, replay: Replay, trajectory: Trajectory) -> None:
    """Write the rows of this process whose loss or gradient is not finite, as JSON."""
    batch = trajectory.batch
    rows = replay.rows
    broken = ~(replay.objective.loss.isfinite() & replay.gradient.isfinite())
    entries = [
        {
            "iteration": trajectory.address[1],
            "step": int(rows.step[i]),
            "sample": int(batch.sample[rows.sample[i]]),
            "prompt": batch.prompts[batch.group[rows.sample[i]]].text,
            "advantage": float(rows.advantage[i]),
            "loss": float(replay.objective.loss[i]),
        }
        for i in broken.nonzero().flatten().tolist()
    ]
    file.write_text(json.dumps(entries, indent=1), encoding="utf-8")
