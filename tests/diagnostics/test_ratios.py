"""The metrics of every trained step, against numbers computed by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from grpo_guard.diagnostics.ratios import EDGES, clip_metrics, ratio_metrics
from grpo_guard.metrics import merge
from grpo_guard.sde import schedule
from grpo_guard.sde.flow import Flow
from grpo_guard.sde.window import Window
from grpo_guard.types import Drift, Objective, Replay, Rows, concatenate, map_tensors


def test_the_edges_of_ratio_histograms():
    assert len(EDGES) == 97
    assert (EDGES.diff() > 0).all()
    assert torch.allclose(EDGES, -EDGES.flip(0))
    assert EDGES[-1].item() == pytest.approx(0.05 * math.sinh(7.6), rel=1e-12)
    assert EDGES[49].item() == pytest.approx(0.05 * math.sinh(7.6 / 48), rel=1e-9)
    assert (EDGES.diff() <= EDGES[-1] * 0.2).all()


LIMITS = torch.tensor([[-0.08, -0.1, -1.0], [0.12, 0.3, 1.0]], dtype=torch.float64).unbind()


@pytest.fixture
def replay():
    """Return rows of two trained steps.

    The ratios lie on both sides of 1 at step 0, and a little above 1 at step 1.
    """
    rows = Rows(
        sample=torch.tensor([0, 0, 1, 1, 2]),
        step=torch.tensor([0, 1, 0, 1, 0]),
        advantage=torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0]),
    )
    along = torch.tensor([0.3, 0.1, -0.2, 0.1, 0.4])
    drift = Drift(
        along=along,
        square=0.02 * torch.ones(5),
        std=0.5 * torch.ones(5),
        gain=torch.ones(5),
        dimensions=7,
    )
    objective = Objective(loss=along, log_ratio=2 * along, high=along > 0.25, low=along < -0.1)
    return Replay(
        rows=rows,
        drift=drift,
        objective=objective,
        penalty=torch.zeros(5),
        gradient=torch.tensor([1.0, 2.0, 3.0, 4.0, 6.0]),
    )


def test_ratio_metrics(replay):
    steps = schedule(Flow(level=0.7, window=Window()), torch.tensor([1.0, 0.7, 0.4, 0.0]))
    metrics = ratio_metrics(replay, steps, LIMITS)
    value = {key: metric.value for key, metric in metrics.items()}
    norm = np.expm1([0.3, -0.2, 0.4])
    raw = np.expm1(np.array([0.3, -0.2, 0.4]) / 0.5 - 0.02 / (2 * 0.25))
    assert {key[-2:] for key in value} == {"00", "01"}
    assert value["ratio_norm/mean/00"] == pytest.approx(norm.mean(), rel=1e-5)
    assert value["ratio_norm/std/00"] == pytest.approx(norm.std(), rel=1e-5)
    assert value["ratio_raw/mean/00"] == pytest.approx(raw.mean(), rel=1e-5)
    assert value["ratio_raw/std/00"] == pytest.approx(raw.std(), rel=1e-5)
    own = np.expm1([0.6, -0.4, 0.8])
    assert value["ratio_own/mean/00"] == pytest.approx(own.mean(), rel=1e-5)
    assert value["ratio_own/std/00"] == pytest.approx(own.std(), rel=1e-5)
    assert value["clip/high/00"] == pytest.approx(2 / 3)
    assert value["clip/low/00"] == pytest.approx(1 / 3)
    assert value["clip/high_pos_adv/00"] == 1
    assert value["clip/low_neg_adv/00"] == 1
    assert value["clip/high/01"] == value["clip/low/01"] == value["clip/high_pos_adv/01"] == 0
    assert value["clip/range/00"] == pytest.approx(np.expm1(0.12))
    assert value["clip/range/01"] == pytest.approx(np.expm1(0.3))
    assert value["grad_share/00"] == pytest.approx(10 / 16)
    assert value["grad_share/01"] == pytest.approx(6 / 16)
    # Half of the clip range of step 0 is 0.1 wide, and the log-ratios are -0.2, 0.3 and 0.4.
    bins = metrics["ratio_norm/hist/00"].counts.nonzero().flatten().tolist()
    assert bins == [np.searchsorted(EDGES, at) - 1 for at in (-2, 3, 4)]


def test_ratio_metrics_of_parts(replay):
    steps = schedule(Flow(level=0.7, window=Window()), torch.tensor([1.0, 0.7, 0.4, 0.0]))
    halves = [pick_rows(replay, [0, 1]), pick_rows(replay, [2, 3, 4])]
    merged = merge(ratio_metrics(half, steps, LIMITS) for half in halves)
    whole = ratio_metrics(concatenate(halves), steps, LIMITS)
    for key, metric in whole.items():
        assert merged[key].value == pytest.approx(metric.value, rel=1e-6), key
    json.dumps({key: metric.value for key, metric in whole.items()})


def pick_rows(replay, rows):
    return map_tensors(replay, lambda x: x[rows])


def test_the_clip_acts_on_no_row_of_advantage_0(replay):
    """The last row of step 0 counts as above and as below the range, and has A = 0."""
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0])
    rows = dataclasses.replace(replay.rows, advantage=advantage)
    objective = dataclasses.replace(
        replay.objective,
        high=torch.tensor([False, False, False, False, True]),
        low=torch.tensor([False, False, False, False, True]),
    )
    changed = dataclasses.replace(replay, rows=rows, objective=objective)
    shares = clip_metrics(changed, rows.step == 0)
    assert shares["high"].value == shares["low"].value == pytest.approx(1 / 3)
    assert shares["high_pos_adv"].value == 0
    assert shares["high_pos_adv"].count == 1
    assert shares["low_neg_adv"].value == 0
    assert shares["low_neg_adv"].count == 1
