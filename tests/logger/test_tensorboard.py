"""TensorBoard's files hold every number, histogram and picture."""

import importlib.util

import numpy as np
import pytest
import torch

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from grpo_guard.diagnostics.ratios import EDGES
from grpo_guard.logger import RunInfo
from grpo_guard.logger.tensorboard import TensorBoard
from grpo_guard.metrics import Mean, histogram, mean
from grpo_guard.schema import ConfigError
from grpo_guard.types import ImageScores, Pictures


def pictures():
    bare = ImageScores(scores={}, notes={})
    return Pictures(
        images=torch.rand(3, 3, 8, 8),
        captions=("a", "b", "c"),
        scores=(bare, bare, bare),
        by_prompt={},
    )


def numbers(iteration):
    values = torch.tensor([-100.0, 0.0, 0.5, 0.7]) + iteration
    return {
        "eval/gold/exact": mean(values),
        "empty": Mean(sum=0, count=0),
        "ratio_raw/hist/03": histogram(values, EDGES),
    }


def log(folder, iterations):
    run = RunInfo(folder=folder, config={}, iterations=4, start=iterations[0])
    with TensorBoard(flush_seconds=30).open(run) as sink:
        for iteration in iterations:
            sink.show(iteration, pictures())
            sink.log(iteration, numbers(iteration))


def read(folder):
    limits = dict.fromkeys(("scalars", "histograms", "images", "tensors"), 0)
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance=limits)
    return events.Reload()


def test_everything_is_there_once_after_a_resume(tmp_path):
    log(tmp_path, range(3))
    log(tmp_path, range(2, 4))
    events = read(tmp_path)
    tags = events.Tags()
    assert tags["scalars"] == ["eval/gold/exact"]
    assert tags["histograms"] == ["ratio_raw/hist/03"]
    assert sorted(tags["images"]) == ["ratios", "samples"]
    scalars = events.Scalars("eval/gold/exact")
    assert [s.step for s in scalars] == [0, 1, 2, 3]
    assert [s.value for s in scalars] == pytest.approx(
        [numbers(i)["eval/gold/exact"].value for i in range(4)]
    )
    counts = events.Histograms("ratio_raw/hist/03")[0].histogram_value
    assert np.sum(counts.bucket) == pytest.approx(4)
    assert counts.bucket[0] == pytest.approx(1)
    assert {image.width for image in events.Images("ratios")} == {1020}


def test_a_run_that_begins_again_is_there_once(tmp_path):
    """It was killed before its first state."""
    log(tmp_path, range(3))
    log(tmp_path, range(2))
    assert [s.step for s in read(tmp_path).Scalars("eval/gold/exact")] == [0, 1]


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'grpo_guard\[tensorboard\]'"):
        TensorBoard(flush_seconds=30)
