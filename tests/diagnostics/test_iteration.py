"""Numbers of an iteration: failures by their exact names, and norms that are not finite."""

import math

import pytest
import torch

from grpo_guard.diagnostics.iteration import check_failures, update_metrics
from grpo_guard.metrics import merge, scalar
from grpo_guard.schema import RunError
from grpo_guard.types import Drift, Objective, Replay, Rows


def make_replay():
    zero = torch.zeros(2)
    return Replay(
        rows=Rows(sample=torch.arange(2), step=torch.arange(2), advantage=zero),
        drift=Drift(along=zero, square=zero, std=zero, gain=zero, dimensions=1),
        objective=Objective(loss=zero, log_ratio=zero, high=zero > 0, low=zero > 0),
        penalty=zero,
        gradient=zero,
    )


def test_a_part_whose_name_begins_alike_is_no_failure():
    metrics = {"reward/failed": scalar(0.0), "reward/failed_words": scalar(0.7)}
    check_failures(metrics, "reward/failed", 0.01)
    with pytest.raises(RunError, match=r"^70.0% .*; fix the reward words$"):
        check_failures(metrics | {"reward/failed/words": scalar(0.7)}, "reward/failed", 0.01)


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_the_norm_of_a_skipped_update_does_not_spoil_the_mean(norm):
    skipped = update_metrics(make_replay(), lr=1e-4, grad_norm=norm)
    taken = update_metrics(make_replay(), lr=1e-4, grad_norm=3.0)
    assert math.isnan(skipped["grad_norm"].value)
    metrics = merge([skipped, taken])
    assert metrics["grad_norm"].value == 3.0
    assert metrics["update/skipped"].value == 0.5
