"""The first lines of a run come at once, and its last lines say what to do next."""

import sys
from types import SimpleNamespace

import pytest

from grpo_guard.console import announcing, multirun
from grpo_guard.console.announcing import announce, describe_end


@pytest.fixture
def job(monkeypatch):
    """Pretend to be the second job of a multirun over two keys."""
    overrides = SimpleNamespace(task=["reward=ocr", "optim.lr=0.001", "seed=1"])
    config = SimpleNamespace(job=SimpleNamespace(num=1), overrides=overrides)
    monkeypatch.setattr(multirun, "HydraConfig", SimpleNamespace(get=lambda: config))
    for module in (announcing, multirun):
        monkeypatch.setattr(module, "is_multirun", lambda: True)
    monkeypatch.setenv(multirun.JOBS, "5")
    monkeypatch.setenv(multirun.VARIED, "optim.lr seed")


def test_a_job_says_its_number_and_what_varies(job, capsys):
    announce()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["job 2 of 5: optim.lr=0.001 seed=1", "loading ..."]
    assert multirun.job_suffix() == "_1_optim.lr=0.001"  # the name holds the seed already


def test_a_single_run_has_one_line_and_other_processes_none(monkeypatch, capsys):
    announce()
    assert capsys.readouterr().err == "loading ...\n"
    monkeypatch.setenv("RANK", "1")
    announce()
    assert capsys.readouterr().err == ""


def test_the_end_names_the_folder_the_checkpoint_and_the_next_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/train.py"])
    for path in ("checkpoints/000002", "checkpoints/000010", "checkpoints/best"):
        (tmp_path / path).mkdir(parents=True)
    assert describe_end(tmp_path).splitlines() == [
        f"run         {tmp_path}",
        f"checkpoint  {tmp_path}/checkpoints/000010",
        f"next        python scripts/sample.py {tmp_path}",
    ]
    for name in ("offline-run-1", "offline-run-2", "offline-run-3"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    (tmp_path / "wandb/offline-run-1/run-1.wandb.synced").touch()
    monkeypatch.setattr(sys, "argv", ["grpo-guard train"])
    last = describe_end(tmp_path).splitlines()[-1]
    assert last == (
        f"next        grpo-guard sample {tmp_path}; wandb sync {tmp_path}/wandb/offline-run-2"
        f" {tmp_path}/wandb/offline-run-3"
    )
