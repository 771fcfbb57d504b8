"""Merging the metrics of parts gives the metrics of the whole."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_guard.metrics import Clock, Mean, Std, dispersion, histogram, mean, merge, scalar, std

numbers = st.lists(st.floats(-1e3, 1e3, width=32), max_size=20)
parts = st.lists(numbers, min_size=1, max_size=6)
EDGES = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).double()


def measure(values):
    x = torch.tensor(values, dtype=torch.float64)
    return {"mean": mean(x), "std": std(x), "hist": histogram(x, EDGES)}


@given(parts)
def test_merging_parts_is_measuring_the_whole(lists):
    whole = [value for part in lists for value in part]
    merged = merge(measure(part) for part in lists)
    direct = measure(whole)
    assert merged["hist"].counts.tolist() == direct["hist"].counts.tolist()
    assert merged["mean"].count == merged["std"].count == len(whole)
    if whole:
        assert merged["mean"].value == pytest.approx(np.mean(whole), rel=1e-9, abs=1e-9)
        assert merged["std"].value == pytest.approx(np.std(whole), rel=1e-6, abs=1e-6)


@given(parts)
def test_order_of_merging_does_not_matter(lists):
    forward = merge(measure(part) for part in lists)["std"]
    backward = merge(measure(part) for part in reversed(lists))["std"]
    assert forward.count == backward.count
    assert forward.mean == pytest.approx(backward.mean, abs=1e-9)
    assert forward.squares == pytest.approx(backward.squares, rel=1e-9, abs=1e-6)


def test_std_of_tiny_spreads_on_a_large_mean(generator):
    x = 1e3 + 1e-6 * torch.randn(1000, dtype=torch.float64, generator=generator)
    total = std(x[:300]) + std(x[300:])
    assert total.value == pytest.approx(x.std(unbiased=False).item(), rel=1e-4)


def test_metrics_of_no_values_are_nan_and_add_nothing():
    empty = torch.zeros(0)
    assert math.isnan(mean(empty).value)
    assert math.isnan(std(empty).value)
    assert (mean(empty) + Mean(sum=3.0, count=2)).value == 1.5
    assert (std(empty) + Std(count=2, mean=5.0, squares=8.0)).value == 2
    assert (Std(count=2, mean=5.0, squares=8.0) + std(empty)).value == 2


def test_nan_is_left_out():
    """A row without a ratio hides those of the others in no metric."""
    measured = measure([1.5, math.nan, -0.5])
    assert measured["mean"].value == 0.5
    assert measured["std"].value == 1
    assert measured["hist"].counts.tolist() == [0, 1, 0, 1]


def test_means_of_parts_weigh_by_their_counts():
    assert (mean(torch.ones(9)) + mean(torch.zeros(1))).value == 0.9
    assert scalar(3.0).value == 3


def test_merge_keeps_keys_that_only_one_part_has():
    merged = merge([{"a": scalar(1.0)}, {"b": scalar(2.0)}, {"a": scalar(3.0)}])
    assert {key: metric.value for key, metric in merged.items()} == {"a": 2, "b": 2}


def test_outer_bins_are_open():
    values = torch.tensor([-1e9, -2.0, -1.5, -0.5, 0.5, 0.5, 1.5, 2.0, 1e9])
    binned = histogram(values, EDGES)
    assert binned.counts.tolist() == [3, 1, 2, 3]
    assert binned.value == 9
    assert histogram(torch.zeros(0), EDGES).counts.tolist() == [0] * 4


def test_the_clock_names_its_parts():
    clock = Clock()
    with clock("rollout"):
        sum(range(1000))
    times = clock.times()
    assert set(times) == {"time/rollout"}
    assert 0 < times["time/rollout"].value <= clock.total < 60


def spread_by_pairs(vectors, group):
    """Return the mean of 1 - cos over the pairs of each group, weighted by its size, with loops."""
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    total = weight = 0
    for g in set(group.tolist()):
        own = unit[group == g]
        pairs = [1 - float(a @ b) for i, a in enumerate(own) for b in own[:i]]
        if pairs:
            total += len(own) * sum(pairs) / len(pairs)
            weight += len(own)
    return total / weight


@pytest.mark.parametrize("cut", [0, 3, 7])
def test_dispersion_is_the_mean_over_pairs_however_it_is_divided(cut, generator):
    vectors = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    group = torch.tensor([0, 0, 0, 1, 1, 2, 0, 1, 0, 1, 3, 3])
    parts = [dispersion(vectors[:cut], group[:cut]), dispersion(vectors[cut:], group[cut:])]
    merged = merge({"apart": part} for part in parts)["apart"]
    assert merged.value == pytest.approx(spread_by_pairs(vectors, group), rel=1e-12)
    assert math.isnan(dispersion(vectors[:2], torch.tensor([0, 1])).value)
