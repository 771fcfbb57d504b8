"""What a run leaves behind, sink by sink."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import wandb
from wandb.sdk.mailbox import HandleAbandonedError

from grpo_guard.logger import Run
from grpo_guard.logger.console import Console
from grpo_guard.logger.folder import Folder
from grpo_guard.logger.tee import Tee
from grpo_guard.logger.wandb import WandB
from grpo_guard.metrics import EDGES, Mean, histogram, mean
from grpo_guard.types import ConfigError, Verdict

IMAGES, CAPTIONS = torch.rand(5, 3, 8, 8), ["one", "two", "three", "four", "five"]
BARE = Verdict(scores={}, notes={})
SEEN = Verdict(
    scores={"eval/proxy/geneval": 0.5, "eval/gold/ocr": math.nan},
    notes={
        "eval/proxy": ("0.00 1 blue cup: saw 1 red, 1 missing", "1.00 1 dog: saw 1"),
        "eval/gold/ocr": ('read "é"',),
    },
)
VERDICTS = [SEEN, *[BARE] * 4]


def numbers(iteration: int) -> dict:
    values = torch.tensor([-100.0, 0.0, 0.5, 100.0]) + iteration
    return {
        "reward/total": mean(values),
        "empty": Mean(sum=0, count=0),
        "ratio_raw/hist/03": histogram(values, EDGES),
    }


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(folder=tmp_path, config={"seed": 1}, iterations=3)


def test_folder_keeps_every_number_and_picture(run) -> None:
    with Folder(flush_every=2).open(run) as sink:
        sink.show(0, IMAGES, CAPTIONS, VERDICTS)
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


def test_folder_tells_what_was_seen_in_every_picture(run) -> None:
    with Folder(flush_every=2).open(run) as sink:
        sink.show(7, IMAGES, CAPTIONS, VERDICTS)
    first, *others = json.loads(
        (run.folder / "samples" / "000007.json").read_text(encoding="utf-8")
    )
    assert first == {
        "prompt": "one",
        "scores": {"eval/proxy/geneval": 0.5, "eval/gold/ocr": None},
        "notes": {name: list(lines) for name, lines in SEEN.notes.items()},
    }
    assert others == [{"prompt": caption, "scores": {}, "notes": {}} for caption in CAPTIONS[1:]]


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
        sink.show(0, torch.zeros(0, 3, 1, 1), (), ())
    assert (run.folder / "metrics.jsonl").exists()
    assert not (run.folder / "samples").exists()


@pytest.fixture
def nobody(run, monkeypatch) -> None:
    """No account is set up."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(run.folder))
    monkeypatch.setenv("NETRC", str(run.folder / "netrc"))
    wandb.teardown()


@pytest.fixture
def unreachable(nobody, monkeypatch) -> Iterator[None]:
    """An account of a server that nothing reaches."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    yield
    wandb.teardown()


def everything(run, sink) -> None:
    sink.show(0, IMAGES, CAPTIONS, VERDICTS)
    for iteration in range(3):
        sink.log(iteration, numbers(iteration))


def complete(folder) -> bool:
    """Whether the run folder holds what `everything` has logged."""
    rows = [
        json.loads(line)["iteration"]
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    kept = np.load(folder / "histograms.npz")["iteration"].tolist()
    return rows == kept == [0, 1, 2] and {p.suffix for p in (folder / "samples").iterdir()} == {
        ".png",
        ".json",
        ".txt",
    }


def told(caplog) -> list[str]:
    """The lines of the project's own log."""
    return [
        record.getMessage() for record in caplog.records if record.name.startswith("grpo_guard")
    ]


def failing(method, allowed, error):
    """The method of W&B's run, which fails once it was called so many times, and must not be called again."""
    calls = itertools.count()

    def call(*arguments, **named):
        count = next(calls)
        assert count <= allowed
        if count == allowed:
            raise error
        return method(*arguments, **named)

    return call


@pytest.mark.filterwarnings("default")
def test_wandb_without_an_account_runs_offline(run, nobody, caplog) -> None:
    with WandB(project="grpo_guard").open(run) as sink:
        everything(run, sink)
    assert list((run.folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert list((run.folder / "wandb").glob("offline-run-*/files/media/images/*.png"))
    assert told(caplog) == []


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("allowed", "error"),
    [
        ({"log": 2, "finish": 0}, ConnectionResetError("Connection lost")),
        ({"log": 2}, wandb.Error("anything")),
        ({"define_metric": 0}, wandb.errors.CommError("no network")),
        ({"finish": 0}, TimeoutError("too late")),
        ({"finish": 0}, HandleAbandonedError("its process\nhas died")),
    ],
)
def test_a_run_goes_on_where_wandb_fails(run, nobody, caplog, monkeypatch, allowed, error) -> None:
    """One line tells, every file is there, and what came before can still be sent."""
    finish = wandb.Run.finish
    for method, count in allowed.items():
        monkeypatch.setattr(wandb.Run, method, failing(getattr(wandb.Run, method), count, error))
    with Tee(sinks={"wandb": WandB(project="grpo_guard"), "folder": Folder(flush_every=2)}).open(
        run
    ) as sink:
        everything(run, sink)
    if "finish" in allowed:
        finish(wandb.run)
    assert complete(run.folder)
    (file,) = (run.folder / "wandb").glob("offline-run-*/run-*.wandb")
    assert file.stat().st_size > 0
    line = f"Weights & Biases shows no more of this run ({type(error).__name__}: {' '.join(str(error).split())})"
    assert told(caplog) == [f"{line}; the run folder does"]


def test_a_failure_of_the_run_is_no_failure_of_wandb(run, nobody) -> None:
    def failed() -> None:
        with WandB(project="grpo_guard").open(run):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        failed()


@pytest.mark.filterwarnings("default")
def test_wandb_that_cannot_be_reached_runs_offline(run, unreachable, caplog) -> None:
    with Tee(
        sinks={"wandb": WandB(project="grpo_guard", timeout=0.5), "folder": Folder(flush_every=2)}
    ).open(run) as sink:
        everything(run, sink)
    assert complete(run.folder)
    assert list((run.folder / "wandb").glob("offline-run-*/run-*.wandb"))
    (line,) = told(caplog)
    assert line.startswith("Weights & Biases cannot be reached (CommError: ")
    assert line.endswith("; it runs offline")


def test_wandb_needs_some_time() -> None:
    with pytest.raises(ConfigError, match=r"timeout=0\.0 is not positive"):
        WandB(project="grpo_guard", timeout=0.0)
