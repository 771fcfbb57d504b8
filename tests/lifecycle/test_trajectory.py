"""A run keeps one iteration if it is asked to, and goes on if the disk is full."""

import errno

import pytest
from safetensors import SafetensorError
from toy import experiment, read_metrics, read_repeatable_metrics

from grpo_guard.lifecycle import trajectory
from grpo_guard.schema import ConfigError
from grpo_guard.train import train


def test_one_iteration_is_kept_and_changes_no_number(tmp_path):
    """The names say which iteration and process it was; without the setting there is no folder."""
    for name, iteration in {"plain": None, "kept": 1}.items():
        (tmp_path / name).mkdir()
        train(experiment(tmp_path / name, iterations=2, keep_trajectory=iteration), {})
    files = {path.name for path in (tmp_path / "kept/trajectory").iterdir()}
    assert files == {"000001.json", "000001_0.safetensors"}
    assert not (tmp_path / "plain/trajectory").exists()
    kept, plain = (read_repeatable_metrics(tmp_path / name) for name in ("kept", "plain"))
    assert kept == plain


def test_a_disk_that_is_full_costs_the_trajectory_not_the_run(tmp_path, monkeypatch, caplog):
    def refuse(tensors, file):
        raise SafetensorError(f"I/O error: No space left on device (os error {errno.ENOSPC})")

    monkeypatch.setattr(trajectory, "save_file", refuse)
    train(experiment(tmp_path, iterations=2, keep_trajectory=0), {})
    assert [row["iteration"] for row in read_metrics(tmp_path)] == [0, 1, 2]
    assert "the trajectory of iteration 0 was not kept ([Errno 28]" in caplog.text


def test_an_iteration_that_never_comes_is_refused():
    message = r"^keep_trajectory=3 is not one of 3 iterations; give at most 2, as they are counted"
    with pytest.raises(ConfigError, match=message):
        experiment(keep_trajectory=3)
