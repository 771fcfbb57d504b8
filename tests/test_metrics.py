"""Metrics of parts, merged, are the metrics of the whole."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_guard.metrics import Clock, Mean, Std, histogram, mean, merge, scalar, std

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
    counted = histogram(torch.tensor([-1e9, -2.0, -1.5, -0.5, 0.5, 0.5, 1.5, 2.0, 1e9]), EDGE)
    assert counted.counts.tolist() == [3, 1, 2, 3]
    assert counted.value == 9
    assert histogram(torch.zeros(0), EDGE).counts.tolist() == [0] * 4


def test_the_clock_names_its_parts():
    clock = Clock()
    with clock("rollout"):
        sum(range(1000))
    times = clock.times()
    assert set(times) == {"time/rollout"}
    assert 0 < times["time/rollout"].value <= clock.total
