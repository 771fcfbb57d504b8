"""Killed at any moment and started again, a run ends as one that was never killed."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import torch
from resuming import run
from toy import read_metrics

import grpo_guard.session
import grpo_guard.train
from grpo_guard.lifecycle import checkpoint
from grpo_guard.lifecycle.checkpoint import Checkpoints, find_flaw, find_newest_state
from grpo_guard.lifecycle.stop import Stopped
from grpo_guard.logger import folder
from grpo_guard.schema import ConfigError
from grpo_guard.train import iterate

MACHINE = ("time/", "throughput/", "memory/")


def numbers(folder):
    return [
        {k: v for k, v in row.items() if not k.startswith(MACHINE)} for row in read_metrics(folder)
    ]


def policy(folder, iteration=6):
    return torch.load(folder / f"checkpoints/{iteration:06d}/policy.pt")


def assert_same(ours, theirs):
    """Bitwise: weights, metrics, histograms."""
    assert numbers(ours) == numbers(theirs)
    assert all(torch.equal(value, policy(theirs)[key]) for key, value in policy(ours).items())
    with (
        np.load(ours / "histograms.npz") as histograms,
        np.load(theirs / "histograms.npz") as wanted,
    ):
        assert set(histograms) == set(wanted)
        assert all(np.array_equal(histograms[key], wanted[key]) for key in wanted)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def progress(folder):
    """How far a run has come, as far as its files tell."""
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.parametrize("seed", range(7))
@pytest.mark.timeout(280)
def test_killed_at_random_moments(whole, tmp_path, monkeypatch, seed):
    """kill -9, again and again, after times that end anywhere: in a rollout, an update, a file being written.

    Some twenty kills in all. The server that processes are forked from looks for `resuming` where its environment says.
    """
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    processes, chance, kills = multiprocessing.get_context("forkserver"), random.Random(seed), 0
    processes.set_forkserver_preload(["resuming"])
    while progress(tmp_path) < 7 and kills < 8:
        process, before = processes.Process(target=run, args=(tmp_path,)), progress(tmp_path)
        process.start()
        while process.is_alive() and progress(tmp_path) <= before:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.15))
        kills += process.is_alive()
        process.kill()
        process.join()
    run(tmp_path)
    assert kills
    assert_same(tmp_path, whole)


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, nothing is cleaned up."""


MOMENTS = {
    "rollout": (grpo_guard.session, "rollout"),
    "reward": (grpo_guard.train, "gather_scores"),
    "update": (grpo_guard.train, "accumulate"),
    "adaptation": (grpo_guard.train, "advance"),
    "metrics": (folder._Files, "log"),
    "histograms": (folder, "_save_arrays"),
    "packing": (folder, "_merge_histograms"),
    "pictures": (folder, "save_image"),
    "state": (checkpoint, "async_save"),
    "export": (checkpoint.CheckpointWriter, "_export"),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("call", [1, 2])
def test_killed_at_every_kind_of_moment(whole, tmp_path, monkeypatch, moment, call):
    owner, name = MOMENTS[moment]
    real, left = getattr(owner, name), iter(range(1000))

    def dies(*args, **kwargs):
        if next(left) == call:
            raise Killed
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dies)
        with pytest.raises(Killed):
            run(tmp_path)
    run(tmp_path)
    assert_same(tmp_path, whole)


def damaged(state, how):
    """A state that something has happened to."""
    part = next(state.glob("*.distcp"))
    if how == "torn":
        part.write_bytes(part.read_bytes()[:-100])
    if how == "flipped":
        content = bytearray(part.read_bytes())
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
    if how == "missing":
        part.unlink()
    if how == "unsealed":
        (state / checkpoint.SEAL).unlink()


@pytest.mark.parametrize("how", ["torn", "flipped", "missing", "unsealed"])
def test_the_last_good_state_is_used(whole, tmp_path, caplog, how):
    folder = tmp_path / "run"
    run(folder, iterations=4)
    damaged(folder / "state/000004", how)
    assert find_newest_state(folder) == folder / "state/000003"
    run(folder)
    assert f"{folder}/state/000004 is not used" in caplog.text
    assert_same(folder, whole)


def test_states_are_pruned_and_whole(whole):
    assert [path.name for path in sorted((whole / "state").iterdir())] == ["000005", "000006"]
    assert not any(find_flaw(state) for state in (whole / "state").iterdir())


def test_a_foreign_state_is_refused_in_a_line(whole, tmp_path):
    foreign = tmp_path / "foreign"
    shutil.copytree(whole / "state/000005", foreign)
    (foreign / ".metadata").write_bytes(b"nothing of ours")
    with pytest.raises(ConfigError, match=r"^resume=.*foreign does not fit this run \("):
        run(tmp_path / "run", resume=str(foreign))
    with pytest.raises(ConfigError, match=r"^resume=.*nowhere does not fit this run \("):
        run(tmp_path / "run", resume=str(tmp_path / "nowhere"))


def test_a_run_that_is_asked_to_stop_finishes_its_iteration(whole, tmp_path, monkeypatch):
    def stop_at_2(session, iteration):
        if iteration == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return iterate(session, iteration)

    with monkeypatch.context() as patch:
        patch.setattr("grpo_guard.train.iterate", stop_at_2)
        with pytest.raises(
            Stopped,
            match=r"^after iteration 3; its state is saved, and the same command with output=",
        ):
            run(tmp_path)
    assert find_newest_state(tmp_path).name == "000003"
    assert policy(tmp_path, 3)
    run(tmp_path)
    assert_same(tmp_path, whole)


def test_fewer_iterations_than_there_are_is_refused(whole, tmp_path):
    with pytest.raises(
        ConfigError, match=r"^iterations=3 is less than the 5 that .* has; give more"
    ):
        run(tmp_path, resume=str(whole / "state/000005"), iterations=3)


def test_never_begins_anew(whole, tmp_path):
    run(tmp_path, iterations=2)
    run(tmp_path, resume="never")
    assert_same(tmp_path, whole)


def test_a_full_disk_costs_a_state_not_the_run(whole, tmp_path, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    run(tmp_path, iterations=2)
    with monkeypatch.context() as patch:
        patch.setattr("grpo_guard.lifecycle.checkpoint.async_save", full)
        run(tmp_path, iterations=4)
    assert (
        "the state after iteration 3 was not saved ([Errno 28] No space left on device)"
        in caplog.text
    )
    assert find_newest_state(tmp_path).name == "000002"
    run(tmp_path)
    assert_same(tmp_path, whole)


def test_the_best_checkpoint_stays(tmp_path):
    keep = Checkpoints(every=1, keep=1, export_every=100, best="eval/gold/grey", asynchronous=False)
    run(tmp_path, checkpoint=keep)
    golds = {
        row["iteration"]: row["eval/gold/grey"]
        for row in read_metrics(tmp_path)
        if "eval/gold/grey" in row
    }
    best = max(golds, key=golds.get)
    card = (tmp_path / "checkpoints/best/README.md").read_text()
    assert f"{best} iterations of reinforcement learning" in card
    assert json.loads((find_newest_state(tmp_path) / "notes.json").read_text())["best"] == max(
        value for iteration, value in golds.items() if iteration < 6
    )
