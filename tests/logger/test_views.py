"""The order of keys in dashboards, counts on their common axis, and the picture of all steps."""

import numpy as np
import pytest
import torch

from grpo_guard.logger._views import (
    AXIS,
    REACH,
    draw_ridgelines,
    most_important_first,
    spread_uniformly,
)
from grpo_guard.metrics import Histogram, scalar

EDGES = torch.linspace(-12, 12, 97, dtype=torch.float64)


def test_the_proxy_comes_first_and_then_the_golds():
    keys = ["loss/policy", "clip/high/00", "eval/kl", "reward/total", "eval/gold/exact", "z"]
    keys += ["eval/proxy/ocr", "ratio_own/mean/00", "eval/over_optimising", "watch/diversity"]
    ordered = most_important_first(dict.fromkeys(keys, scalar(0)))
    assert list(ordered) == [
        "eval/proxy/ocr", "eval/gold/exact", "eval/over_optimising", "reward/total", "eval/kl",
        "ratio_own/mean/00", "clip/high/00", "watch/diversity", "loss/policy", "z",
    ]  # fmt: skip


def make_histogram(low, high, rows=960):
    counts = torch.histc(torch.linspace(low, high, rows), 96, -12, 12).long()
    return Histogram(counts=counts, edges=EDGES)


def test_all_rows_are_counted_and_those_outside_in_the_outer_bins():
    counts = spread_uniformly(make_histogram(-9.0, 9.0))
    assert counts.sum() == pytest.approx(960)
    assert counts[0] == pytest.approx(960 * 6 / 18, rel=0.03)
    assert counts[-1] == pytest.approx(counts[0], rel=0.05)
    assert np.ptp(counts[1:-1]) < 1


def test_the_picture_shows_the_clip_range_and_where_the_rows_are():
    """Columns of pixels of the first panel: the band is bluer than paper, a ridge bluer still."""
    picture = draw_ridgelines({"ratio_own/hist/00": make_histogram(-0.5, 0.5)})
    empty = draw_ridgelines({"ratio_own/hist/00": make_histogram(5.0, 6.0)})
    band = (empty == (0xDF, 0xE7, 0xF2)).all(2)
    columns = np.flatnonzero(band.any(0))
    assert len(columns) > 100
    changed = np.flatnonzero((picture != empty).any(2).any(0))
    inside = changed[changed < picture.shape[1] / 3]
    middle = columns[columns < picture.shape[1] / 3].mean()
    assert abs(np.median(inside) - middle) < picture.shape[1] * 0.05
    assert AXIS[1] == pytest.approx(-REACH)


def test_a_step_above_99_is_a_line_of_its_own():
    """Steps are numbers: 100 comes last, and not in the place of step 0."""
    steps = {f"ratio_own/hist/{step:02d}": make_histogram(-0.5, 0.5) for step in (0, 99, 100)}
    whole = draw_ridgelines(steps)
    del steps["ratio_own/hist/100"]
    assert whole.shape[0] > draw_ridgelines(steps).shape[0]
