"""What a run leaves behind, sink by sink."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from grpo_guard.logger import Run
from grpo_guard.logger.console import Console
from grpo_guard.logger.folder import Folder
from grpo_guard.logger.tee import Tee
from grpo_guard.logger.wandb import WandB
from grpo_guard.metrics import EDGES, Mean, histogram, mean

IMAGES, CAPTIONS = torch.rand(5, 3, 8, 8), ["one", "two", "three", "four", "five"]


def numbers(iteration: int) -> dict:
    values = torch.tensor([-100.0, 0.0, 0.5, 100.0]) + iteration
    return {"reward/total": mean(values), "empty": Mean(sum=0, count=0), "ratio_raw/hist/03": histogram(values, EDGES)}


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(folder=tmp_path, config={"seed": 1}, iterations=3)


def test_folder_keeps_every_number_and_picture(run) -> None:
    with Folder(flush_every=2).open(run) as sink:
        sink.show(0, IMAGES, CAPTIONS)
        for iteration in range(3):
            sink.log(iteration, numbers(iteration))
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"iteration": i, "reward/total": 0.125 + i} for i in range(3)]
    found = np.load(run.folder / "histograms.npz")
    assert found["iteration"].tolist() == [0, 1, 2]
    assert np.allclose(found["edges"], EDGES)
    counts = found["ratio_raw/hist/03"]
    assert counts.shape == (3, len(EDGES) - 1)
    assert counts.sum(1).tolist() == [4, 4, 4]
    assert counts[0, 0] == counts[0, -1] == 1
    assert (run.folder / "samples" / "000000.png").stat().st_size > 0
    assert (run.folder / "samples" / "captions.txt").read_text().splitlines() == CAPTIONS


def test_folder_is_complete_after_an_interruption(run) -> None:
    def interrupted() -> None:
        with Folder(flush_every=100).open(run) as sink:
            sink.log(0, numbers(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert np.load(run.folder / "histograms.npz")["iteration"].tolist() == [0]


def test_console_says_how_far_and_how_long(run, capsys) -> None:
    with Console(live=True).open(run) as sink:
        sink.log(0, numbers(0))
        sink.log(3, numbers(3))
    first, last = capsys.readouterr().err.splitlines()
    assert "1/3  reward 0.125" in first
    assert "3/3" in last
    assert last.endswith("left 0:00")


def test_tee_passes_on_and_skips_empty_pictures(run) -> None:
    logger = Tee(sinks={"folder": Folder(flush_every=1), "console": Console(live=False)})
    with logger.open(run) as sink:
        sink.log(0, numbers(0))
        sink.show(0, torch.zeros(0, 3, 1, 1), ())
    assert (run.folder / "metrics.jsonl").exists()
    assert not (run.folder / "samples").exists()


@pytest.mark.filterwarnings("default")
def test_wandb_without_an_account_runs_offline(run, monkeypatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(run.folder))
    monkeypatch.setenv("NETRC", str(run.folder / "netrc"))
    with WandB(project="grpo_guard").open(run) as sink:
        sink.log(0, numbers(0))
        sink.show(0, IMAGES, CAPTIONS)
    assert list((run.folder / "wandb").glob("offline-run-*/run-*.wandb"))
