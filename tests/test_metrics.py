"""Metrics of parts, merged, are the metrics of the whole."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_guard.metrics import (
    EDGES,
    Clock,
    Mean,
    Std,
    histogram,
    mean,
    merge,
    ratio_metrics,
    scalar,
    std,
)
from grpo_guard.sde import schedule
from grpo_guard.sde.flow import Flow
from grpo_guard.sde.window import Window
from grpo_guard.types import Drift, Objective, Replay, Rows, concatenate, map_tensors

numbers = st.lists(st.floats(-1e3, 1e3, width=32), max_size=20)
parts = st.lists(numbers, min_size=1, max_size=6)
EDGE = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).double()


def measure(values):
    x = torch.tensor(values, dtype=torch.float64)
    return {"mean": mean(x), "std": std(x), "hist": histogram(x, EDGE)}


@given(parts)
def test_merging_parts_is_measuring_the_whole(lists):
    whole = [value for part in lists for value in part]
    merged, direct = merge(measure(part) for part in lists), measure(whole)
    assert merged["hist"].counts.tolist() == direct["hist"].counts.tolist()
    assert merged["mean"].count == merged["std"].count == len(whole)
    if whole:
        assert merged["mean"].value == pytest.approx(np.mean(whole), rel=1e-9, abs=1e-9)
        assert merged["std"].value == pytest.approx(np.std(whole), rel=1e-6, abs=1e-6)


@given(parts)
def test_order_of_merging_does_not_matter(lists):
    there, back = (merge(measure(part) for part in order)["std"] for order in (lists, lists[::-1]))
    assert there.count == back.count
    assert there.mean == pytest.approx(back.mean, abs=1e-9)
    assert there.squares == pytest.approx(back.squares, rel=1e-9, abs=1e-6)


def test_std_of_tiny_spreads_on_a_large_mean():
    x = 1e3 + 1e-6 * torch.randn(
        1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    joined = std(x[:300]) + std(x[300:])
    assert joined.value == pytest.approx(x.std(unbiased=False).item(), rel=1e-4)


def test_nothing_is_nan_not_an_error():
    empty = torch.zeros(0)
    assert math.isnan(mean(empty).value)
    assert math.isnan(std(empty).value)
    assert (mean(empty) + Mean(sum=3.0, count=2)).value == 1.5
    assert (std(empty) + Std(count=2, mean=5.0, squares=8.0)).value == 2
    assert (Std(count=2, mean=5.0, squares=8.0) + std(empty)).value == 2


def test_means_leave_out_what_is_nan():
    assert mean(torch.tensor([1.0, math.nan, 3.0])).value == 2


def test_a_sum_over_a_smaller_count_is_not_a_mean_of_means():
    assert (mean(torch.ones(9)) + mean(torch.zeros(1))).value == 0.9
    assert scalar(3.0).value == 3


def test_merge_keeps_keys_that_only_one_part_has():
    merged = merge([{"a": scalar(1.0)}, {"b": scalar(2.0)}, {"a": scalar(3.0)}])
    assert {key: metric.value for key, metric in merged.items()} == {"a": 2, "b": 2}


def test_outer_bins_are_open():
    found = histogram(torch.tensor([-1e9, -2.0, -1.5, -0.5, 0.5, 0.5, 1.5, 2.0, 1e9]), EDGE)
    assert found.counts.tolist() == [3, 1, 2, 3]
    assert found.value == 9
    assert histogram(torch.zeros(0), EDGE).counts.tolist() == [0] * 4


def test_the_edges_of_ratio_histograms():
    assert len(EDGES) == 97
    assert (EDGES.diff() > 0).all()
    assert torch.allclose(EDGES, -EDGES.flip(0))
    assert EDGES[-1] > 49
    assert EDGES.diff().min() < 0.01
    assert (EDGES.diff() <= EDGES[-1] * 0.2).all()


BOUNDS = torch.tensor([[-0.08, -0.1, -1.0], [0.12, 0.3, 1.0]], dtype=torch.float64).unbind()


@pytest.fixture
def replay():
    """Two trained steps of three; step 0 has ratios on both sides, step 1 is a little above 1."""
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
    found = ratio_metrics(replay, steps, BOUNDS)
    value = {key: metric.value for key, metric in found.items()}
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
    counts = found["ratio_norm/hist/00"].counts  # in units of 0.1
    assert counts.nonzero().flatten().tolist() == [
        np.searchsorted(EDGES, at) - 1 for at in (-2, 3, 4)
    ]


def test_ratio_metrics_of_parts(replay):
    steps = schedule(Flow(level=0.7, window=Window()), torch.tensor([1.0, 0.7, 0.4, 0.0]))
    halves = [pick(replay, [0, 1]), pick(replay, [2, 3, 4])]
    merged = merge(ratio_metrics(half, steps, BOUNDS) for half in halves)
    whole = ratio_metrics(concatenate(halves), steps, BOUNDS)
    for key, metric in whole.items():
        assert merged[key].value == pytest.approx(metric.value, rel=1e-6), key
    json.dumps({key: metric.value for key, metric in whole.items()})


def pick(replay, rows):
    return map_tensors(replay, lambda x: x[rows])


def test_the_clock_names_its_parts():
    clock = Clock()
    with clock("rollout"):
        sum(range(1000))
    times = clock.times()
    assert set(times) == {"time/rollout"}
    assert 0 < times["time/rollout"].value <= clock.total
