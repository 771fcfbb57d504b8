"""Updates that are skipped in a row are counted; one that is not skipped ends the row."""

import json
import math

import pytest
import torch
from toy import draw_trajectory, experiment

from grpo_guard.diagnostics.not_finite import count_skipped, write_broken_rows
from grpo_guard.metrics import scalar
from grpo_guard.rollout import transitions
from grpo_guard.session import prepare
from grpo_guard.types import Drift, Objective, Replay


@pytest.mark.parametrize(
    ("before", "skipped", "count"),
    [
        (0, [], (0, 0)),
        (2, [], (2, 2)),
        (0, [1, 1], (2, 2)),
        (3, [1], (4, 4)),
        (3, [0], (0, 3)),
        (3, [1, 0, 1], (1, 4)),
        (3, [0, 1, 1], (2, 3)),
        (0, [1, 1, 1, 0], (0, 3)),
    ],
)
def test_only_skips_in_a_row_count(before, skipped, count):
    updates = [{"update/skipped": scalar(float(flag))} for flag in skipped]
    assert count_skipped(before, updates) == count


def test_the_rows_to_blame_are_written(tmp_path):
    trajectory = draw_trajectory(prepare(experiment()), iteration=3)
    rows = transitions(trajectory, torch.linspace(-1, 1, 32))[[5, 40, 70, 7]]
    loss = torch.tensor([0.5, math.nan, 0.25, math.inf])
    gradient = torch.tensor([1.0, 1.0, math.inf, 1.0])
    zero = torch.zeros(4)
    drift = Drift(along=zero, square=zero, std=zero, gain=zero, dimensions=1)
    objective = Objective(loss=loss, log_ratio=zero, high=zero > 0, low=zero > 0)
    replay = Replay(rows=rows, drift=drift, objective=objective, penalty=zero, gradient=gradient)
    write_broken_rows(tmp_path / "rows.json", replay, trajectory)
    text = (tmp_path / "rows.json").read_text(encoding="utf-8")
    assert text.startswith("[\n {\n  ")
    batch = trajectory.batch
    assert [entry.pop("loss") for entry in json.loads(text)][1:] == [0.25, math.inf]
    assert json.loads(text)[1] == {
        "iteration": 3,
        "step": rows.step[2].item(),
        "sample": batch.sample[rows.sample[2]].item(),
        "prompt": batch.prompts_by_sample()[rows.sample[2]].text,
        "advantage": rows.advantage[2].item(),
        "loss": 0.25,
    }
