"""What W&B's offline files hold: names, every number, histogram and picture, one run."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb

from grpo_guard.diagnostics.ratios import EDGES
from grpo_guard.logger import SILENT, RunInfo
from grpo_guard.logger._views import AXIS
from grpo_guard.logger._wandb_files import last_step, read_records
from grpo_guard.logger.folder import Folder
from grpo_guard.logger.tee import Tee
from grpo_guard.logger.wandb import WandB
from grpo_guard.metrics import histogram, scalar
from grpo_guard.types import ImageScores, Pictures

CONFIG = {
    "seed": 3,
    "clipping": {"name": "guard"},
    "choices": {"reward": "ocr", "backbone": "sd3_tiny", "sweeps": "ab", "preset": None},
    "overrides": ["+sweeps=ab", "clipping=guard", "reward=ocr", "seed=3", "optim.lr=1e-4"],
    "swept": ["clipping", "reward", "seed"],
}
VARIABLES = [
    "WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_NAME",
    "WANDB_RUN_GROUP", "WANDB_JOB_TYPE", "WANDB_TAGS", "WANDB_NOTES", "WANDB_RUN_ID", "WANDB_DIR",
    "WANDB_ERROR_REPORTING",
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_account(tmp_path, monkeypatch):
    """Remove every account and setting of W&B from the environment."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()
    yield
    wandb.teardown()


def info(folder, start=0, **config):
    folder.mkdir(exist_ok=True)
    return RunInfo(folder=folder, config=CONFIG | config, iterations=6, start=start)


def metrics_of(iteration):
    """The numbers of an iteration; every second one has an evaluation."""
    values = torch.linspace(-10, 2, 40) * (iteration + 1) / 3
    metrics = {
        "clip/high/03": scalar(0.1),
        "loss/policy": scalar(-iteration),
        "ratio_raw/hist/03": histogram(values, EDGES),
        "ratio_own/hist/03": histogram(values / 9, EDGES),
        "empty": scalar(math.nan),
    }
    if iteration % 2 == 0:
        metrics |= {
            "eval/gold/exact": scalar(0.4 - iteration / 10),
            "eval/proxy/pickscore": scalar(11 + iteration),
        }
    return metrics


def log(sink, iterations):
    for iteration in iterations:
        if iteration % 2 == 0:
            sink.show(iteration, pictures())
        sink.log(iteration, metrics_of(iteration))


def pictures():
    bare = ImageScores(scores={}, notes={})
    return Pictures(
        images=torch.rand(2, 3, 8, 8), captions=("a", "b"), scores=(bare, bare), by_prompt={}
    )


def offline_files(folder):
    wandb.teardown()  # its process writes the last records when it ends
    return sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))


def records(files, kind):
    return [
        getattr(record, kind)
        for file in files
        for record in read_records(file)
        if record.WhichOneof("record_type") == kind
    ]


def rows(files):
    """Return the rows of the history as nested mappings, as W&B's server reads them."""
    for history in records(files, "history"):
        row = {}
        for item in history.item:
            *path, last = item.nested_key or [item.key]
            place = row
            for name in path:
                place = place.setdefault(name, {})
            place[last] = json.loads(item.value_json)
        yield row


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """The offline file of a run of four iterations."""
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        folder = tmp_path_factory.mktemp("run")
        patch.setenv("HOME", str(folder))
        patch.setenv("NETRC", str(folder / "netrc"))
        wandb.teardown()
        with WandB().open(info(folder)) as sink:
            log(sink, range(4))
        return offline_files(folder)


def test_every_key_histogram_and_picture_is_in_the_file(complete):
    logged = list(rows(complete))
    assert [row["_step"] for row in logged] == [row["iteration"] for row in logged] == [0, 1, 2, 3]
    for iteration, row in enumerate(logged):
        metrics = metrics_of(iteration)
        assert metrics.keys() <= row.keys()
        assert row["loss/policy"] == -iteration
        counts = np.array(row["ratio_raw/hist/03"]["values"])
        assert row["ratio_raw/hist/03"]["bins"] == AXIS.tolist()
        assert counts.sum() == pytest.approx(40)
        outside = torch.linspace(-10, 2, 40) * (iteration + 1) / 3 < -3
        assert counts[0] == pytest.approx(float(outside.sum()), abs=2)
        assert {"samples", "ratios", "gold_against_proxy"} & row.keys() == (
            {"samples", "ratios"} if iteration % 2 == 0 else set()
        )
    first = logged[0]
    assert first["gold_against_proxy/exact"] == first["eval/gold/exact"] == 0.4
    pictures = [*first["samples"]["filenames"], first["ratios"]["path"]]
    assert len(pictures) == 3
    assert all((complete[0].parent / "files" / path).is_file() for path in pictures)
    assert first["samples"]["captions"] == ["a", "b"]


def test_metrics_have_axes_and_summaries(complete):
    defined = {m.name or m.glob_name: m for m in records(complete, "metric")}
    assert defined["*"].step_metric == "iteration"
    assert defined["gold_against_proxy/*"].step_metric == "eval/proxy/pickscore"
    for key in ("eval/gold/*", "eval/proxy/*", "reward/total"):
        assert defined[key].summary.max
        assert defined[key].summary.last


def test_a_run_says_what_it_is(complete):
    run = records(complete, "run")[0]
    assert (run.project, run.display_name) == ("grpo_guard", "guard, reward=ocr, seed 3")
    assert (run.run_group, run.job_type) == ("ab: guard, reward=ocr", "train")
    assert list(run.tags) == ["guard", "ocr", "sd3_tiny", "ab"]
    assert run.notes == "sweeps=ab clipping=guard reward=ocr seed=3 optim.lr=1e-4"
    config = {(u.key or u.nested_key[0]): json.loads(u.value_json) for u in run.config.update}
    assert config["objective"] == "guard"
    assert config["choices"]["reward"] == "ocr"


def test_variables_of_wandb_outrank_defaults_but_not_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_TAGS", "a,b")
    monkeypatch.setenv("WANDB_NAME", "from outside")
    monkeypatch.setenv("WANDB_RUN_ID", "chosen")
    with WandB(name="a setting", job_type="debug").open(info(tmp_path)):
        pass
    (run, *_) = records(offline_files(tmp_path), "run")
    assert (run.run_group, run.project, list(run.tags)) == ("mine", "theirs", ["a", "b"])
    assert (run.display_name, run.job_type, run.run_id) == ("a setting", "debug", "chosen")


def test_disabled_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with WandB().open(info(tmp_path)) as sink:
        assert sink is SILENT
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("start", [2, 3])
def test_a_run_that_goes_on_offline_is_one_run(tmp_path, start):
    """It goes on at 2 after a state of then, or at 3; W&B has the iterations up to 2 in any case.

    `wandb sync` sends the files of one id in their order, as parts of one run, because both ask to
    be resumed and their steps follow each other.
    """
    logger = Tee(sinks={"folder": Folder(flush_every=9), "wandb": WandB()})
    with logger.open(info(tmp_path)) as sink:
        log(sink, range(3))
    wandb.teardown()
    with logger.open(info(tmp_path, start=start)) as sink:
        log(sink, range(start, 5))
    files = offline_files(tmp_path)
    assert len(files) == 2
    assert {run.run_id for run in records(files, "run")} == {(tmp_path / "wandb_id").read_text()}
    assert all(run.resume for run in records(files, "run"))
    assert [row["_step"] for row in rows(files)] == [0, 1, 2, 3, 4]


def test_iterations_that_wandb_lost_come_from_the_run_folder(tmp_path):
    with Folder(flush_every=9).open(info(tmp_path)) as sink:
        log(sink, range(3))
    with WandB().open(info(tmp_path, start=3)) as sink:
        log(sink, [3])
    logged = list(rows(offline_files(tmp_path)))
    assert [row["_step"] for row in logged] == [0, 1, 2, 3]
    assert [row["loss/policy"] for row in logged] == [0, -1, -2, -3]


def test_a_file_that_breaks_off_is_read_so_far(complete, tmp_path):
    data = complete[0].read_bytes()
    folder = tmp_path / "offline-run-1-x"
    folder.mkdir()
    steps = []
    for size in np.linspace(0, len(data), 12).astype(int).tolist():
        (folder / "run-x.wandb").write_bytes(data[:size])
        steps.append(last_step(tmp_path, "x"))
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (-1, 3)
    assert last_step(Path("nowhere"), "x") == -1


@pytest.mark.parametrize(("choice", "expected"), [(None, "false"), ("true", "true")])
def test_the_library_reports_nothing_of_its_own_unless_it_is_asked_to(
    tmp_path, monkeypatch, choice, expected
):
    if choice is not None:
        monkeypatch.setenv("WANDB_ERROR_REPORTING", choice)
    with WandB().open(info(tmp_path)):
        assert os.environ["WANDB_ERROR_REPORTING"] == expected
        assert wandb.env.error_reporting_enabled() == (expected == "true")
