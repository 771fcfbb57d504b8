"""What each logger records of a run."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
from wandb.sdk.mailbox import HandleAbandonedError

from grpo_guard.diagnostics.ratios import EDGES
from grpo_guard.eval import NOTHING
from grpo_guard.logger import RunInfo
from grpo_guard.logger.console import Console
from grpo_guard.logger.folder import Folder, is_finished
from grpo_guard.logger.tee import Tee
from grpo_guard.logger.wandb import WandB
from grpo_guard.metrics import Mean, histogram, mean
from grpo_guard.schema import ConfigError
from grpo_guard.types import ImageScores, Pictures

BARE = ImageScores(scores={}, notes={})
SEEN = ImageScores(
    scores={"eval/proxy/geneval": 0.5, "eval/gold/ocr": math.nan},
    notes={
        "eval/proxy": ("0.00 1 blue cup: saw 1 red, 1 missing", "1.00 1 dog: saw 1"),
        "eval/gold/ocr": ('read "é"',),
    },
)
PICTURES = Pictures(
    images=torch.rand(5, 3, 8, 8),
    captions=("one", "two", "three", "four", "five"),
    scores=(SEEN, BARE, BARE, BARE, BARE),
    by_prompt={"eval/gold/ocr": (0.5, math.nan, 1 / 3)},
)


def numbers(iteration: int) -> dict:
    values = torch.tensor([-100.0, 0.0, 0.5, 100.0]) + iteration
    return {
        "reward/total": mean(values),
        "empty": Mean(sum=0, count=0),
        "ratio_raw/hist/03": histogram(values, EDGES),
    }


@pytest.fixture
def run(tmp_path) -> RunInfo:
    return RunInfo(folder=tmp_path, config={"seed": 1}, iterations=3)


def test_folder_keeps_every_number_and_picture(run) -> None:
    with Folder(flush_every=2).open(run) as sink:
        sink.show(0, PICTURES)
        for iteration in range(3):
            sink.log(iteration, numbers(iteration))
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"iteration": i, "reward/total": 0.125 + i} for i in range(3)]
    arrays = np.load(run.folder / "histograms.npz")
    assert arrays["iteration"].tolist() == [0, 1, 2]
    assert np.allclose(arrays["edges"], EDGES)
    counts = arrays["ratio_raw/hist/03"]
    assert counts.shape == (3, len(EDGES) - 1)
    assert counts.sum(1).tolist() == [4, 4, 4]
    assert counts[0, 0] == counts[0, -1] == 1
    assert (run.folder / "samples" / "000000.png").stat().st_size > 0
    assert (run.folder / "samples" / "captions.txt").read_text().splitlines() == list(
        PICTURES.captions
    )


def test_every_caption_is_one_line(run) -> None:
    captions = ("one\nline", "two\u2028lines", "three\r\n", "four", "five")
    with Folder(flush_every=2).open(run) as sink:
        sink.show(0, replace(PICTURES, captions=captions))
    lines = (run.folder / "samples" / "captions.txt").read_text(encoding="utf-8").splitlines()
    assert lines == ["one line", "two lines", "three", "four", "five"]


def test_captions_are_replaced_whole(run, monkeypatch) -> None:
    """A reader never finds an empty file: a new one takes the place of the old one."""
    with Folder(flush_every=2).open(run) as sink:
        sink.show(0, PICTURES)
        captions = run.folder / "samples" / "captions.txt"
        before = captions.stat().st_ino
        sink.show(1, PICTURES)
    assert captions.stat().st_ino != before


def test_what_is_left_in_the_folder_of_histograms_does_not_hide_why_a_run_ends(run) -> None:
    def interrupted() -> None:
        with Folder(flush_every=100).open(run) as sink:
            sink.log(0, numbers(0))
            (run.folder / "histograms" / "000001.tmp").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with Folder(flush_every=100).open(replace(run, start=1)) as sink:
        sink.log(1, numbers(1))
    assert not (run.folder / "histograms").exists()


def test_folder_keeps_the_score_of_every_prompt(run) -> None:
    with Folder(flush_every=2).open(run) as sink:
        for iteration in (0, 5, 10):
            sink.show(iteration, PICTURES)
    with Folder(flush_every=2).open(replace(run, start=5)) as sink:
        sink.show(5, replace(PICTURES, by_prompt={"eval/gold/ocr": (1.0,)}))
    lines = (run.folder / "prompt_scores.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"iteration": 0, "eval/gold/ocr": [0.5, None, 0.3333333]},
        {"iteration": 5, "eval/gold/ocr": [1.0]},
    ]


def test_folder_keeps_scores_and_notes_of_every_picture(run) -> None:
    with Folder(flush_every=2).open(run) as sink:
        sink.show(7, PICTURES)
    first, *others = json.loads(
        (run.folder / "samples" / "000007.json").read_text(encoding="utf-8")
    )
    assert first == {
        "prompt": "one",
        "scores": {"eval/proxy/geneval": 0.5, "eval/gold/ocr": None},
        "notes": {name: list(lines) for name, lines in SEEN.notes.items()},
    }
    assert others == [
        {"prompt": caption, "scores": {}, "notes": {}} for caption in PICTURES.captions[1:]
    ]


def test_folder_is_complete_after_an_interruption(run) -> None:
    def interrupted() -> None:
        with Folder(flush_every=100).open(run) as sink:
            sink.log(0, numbers(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert np.load(run.folder / "histograms.npz")["iteration"].tolist() == [0]


def test_a_last_line_that_breaks_off_is_no_end(run) -> None:
    """A disk that was full leaves half of a line."""
    with Folder(flush_every=2).open(run) as sink:
        for iteration in range(4):
            sink.log(iteration, numbers(iteration))
    assert is_finished(run.folder, 3)
    assert not is_finished(run.folder, 2)
    file = run.folder / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-10])
    assert not is_finished(run.folder, 3)


def test_bytes_that_are_no_text_are_a_line_that_is_not_whole(run) -> None:
    """A machine that loses its power may leave anything."""
    file = run.folder / "metrics.jsonl"
    file.write_bytes(b'{"iteration": 0}\n{"iter\xff\x00')
    assert not is_finished(run.folder, 1)
    with Folder(flush_every=2).open(replace(run, start=1)):
        assert file.read_text() == '{"iteration": 0}\n'


def test_console_shows_progress_and_time_left(run, capsys) -> None:
    with Console(live=True).open(run) as sink:
        sink.log(0, numbers(0))
        sink.log(3, numbers(3))
    first, scores, last, _ = capsys.readouterr().err.splitlines()
    assert "1/3  left " in first
    assert scores.startswith("  reward 0.125")
    assert last.endswith("3/3  left 0:00")


def test_tee_passes_on_and_skips_empty_pictures(run) -> None:
    logger = Tee(sinks={"folder": Folder(flush_every=1), "console": Console(live=False)})
    with logger.open(run) as sink:
        sink.log(0, numbers(0))
        sink.show(0, NOTHING.pictures)
    assert (run.folder / "metrics.jsonl").exists()
    assert not (run.folder / "samples").exists()


@pytest.fixture
def no_account(run, monkeypatch) -> None:
    """Remove every W&B account from the environment."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(run.folder))
    monkeypatch.setenv("NETRC", str(run.folder / "netrc"))
    wandb.teardown()


@pytest.fixture
def unreachable(no_account, monkeypatch) -> Iterator[None]:
    """Set up an account on a server that cannot be reached."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    yield
    wandb.teardown()


def log_everything(run, sink) -> None:
    sink.show(0, PICTURES)
    for iteration in range(3):
        sink.log(iteration, numbers(iteration))


def is_complete(folder) -> bool:
    """Whether the run folder holds everything that `log_everything` logs."""
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


def warnings(caplog) -> list[str]:
    """Return the messages that grpo_guard logged."""
    return [
        record.getMessage() for record in caplog.records if record.name.startswith("grpo_guard")
    ]


def failing(method, allowed, error):
    """Return a method that fails after `allowed` calls, and must not be called again after that."""
    calls = itertools.count()

    def call(*arguments, **named):
        count = next(calls)
        assert count <= allowed
        if count == allowed:
            raise error
        return method(*arguments, **named)

    return call


@pytest.mark.filterwarnings("default")
def test_wandb_without_an_account_runs_offline(run, no_account, caplog) -> None:
    with WandB(project="grpo_guard").open(run) as sink:
        log_everything(run, sink)
    assert list((run.folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert list((run.folder / "wandb").glob("offline-run-*/files/media/images/*.png"))
    assert warnings(caplog) == []


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
def test_a_run_goes_on_where_wandb_fails(
    run, no_account, caplog, monkeypatch, allowed, error
) -> None:
    """There is one warning, the run folder is complete, and earlier data can still be synced."""
    finish = wandb.Run.finish
    for method, count in allowed.items():
        monkeypatch.setattr(wandb.Run, method, failing(getattr(wandb.Run, method), count, error))
    with Tee(sinks={"wandb": WandB(project="grpo_guard"), "folder": Folder(flush_every=2)}).open(
        run
    ) as sink:
        log_everything(run, sink)
    if "finish" in allowed:
        finish(wandb.run)
    assert is_complete(run.folder)
    (file,) = (run.folder / "wandb").glob("offline-run-*/run-*.wandb")
    assert file.stat().st_size > 0
    cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
    line = f"Weights & Biases failed ({cause}); the rest of this run is only in the run folder"
    assert warnings(caplog) == [line]


def test_wandb_does_not_swallow_errors_of_the_run(run, no_account) -> None:
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
        log_everything(run, sink)
    assert is_complete(run.folder)
    assert list((run.folder / "wandb").glob("offline-run-*/run-*.wandb"))
    (line,) = warnings(caplog)
    assert line.startswith("Weights & Biases cannot be reached (CommError: ")
    assert line.endswith("; this run is logged offline")


def test_a_timeout_must_be_positive() -> None:
    with pytest.raises(ConfigError, match=r"timeout=0\.0 is not positive"):
        WandB(project="grpo_guard", timeout=0.0)


def test_an_own_sink_of_the_guide_is_a_logger(run, capsys) -> None:
    text = (Path(__file__).parents[2] / "docs/metrics.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    exec(example, names)
    with Tee(sinks={"print": names["Print"]()}).open(run) as sink:
        log_everything(run, sink)
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "0 5 pictures"
    assert second.startswith("0 {'reward/total': 0.125")
