"""A run that is killed at any moment and started again ends like one that was never killed."""

import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from resuming import make_writer, run
from toy import load_policy, read_metrics, read_repeatable_metrics

import grpo_guard.session
import grpo_guard.train
from grpo_guard.lifecycle import checkpoint, model_card
from grpo_guard.lifecycle.checkpoint import Checkpoints
from grpo_guard.lifecycle.states import SEAL, find_flaw, find_newest_state
from grpo_guard.lifecycle.stop import Stopped
from grpo_guard.logger import folder as folder_logger
from grpo_guard.metrics import scalar
from grpo_guard.schema import ConfigError
from grpo_guard.train import iterate


def assert_same(ours, theirs):
    """Compare the metrics, weights, cards and histograms of two run folders bit by bit."""
    assert read_repeatable_metrics(ours) == read_repeatable_metrics(theirs)
    for card in theirs.glob("checkpoints/*/README.md"):
        assert (ours / card.relative_to(theirs)).read_text() == card.read_text()
    weights = load_policy(ours, 6)
    expected_weights = load_policy(theirs, 6)
    assert set(weights) == set(expected_weights)
    assert all(torch.equal(value, expected_weights[key]) for key, value in weights.items())
    with (
        np.load(ours / "histograms.npz") as histograms,
        np.load(theirs / "histograms.npz") as expected,
    ):
        assert set(histograms) == set(expected)
        assert all(np.array_equal(histograms[key], expected[key]) for key in expected)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def count_rows(folder):
    """Return how many rows a run has written to metrics.jsonl."""
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


KILLED_RUNS = int(os.environ.get("KILLED_RUNS", "2"))
"""How many runs are killed, some five times each: KILLED_RUNS=4 kills about twenty times."""


@pytest.mark.parametrize("seed", range(KILLED_RUNS))
@pytest.mark.timeout(280)
def test_killed_at_random_moments(whole, tmp_path, monkeypatch, seed):
    """Kill -9 a run again and again, after waits that may end in any part of an iteration."""
    # The server that forks the processes finds `resuming` by its environment.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["resuming"])
    random_waits = random.Random(seed)
    kills = 0
    while count_rows(tmp_path) < 7 and kills < 8:
        before = count_rows(tmp_path)
        process = processes.Process(target=run, args=(tmp_path,))
        process.start()
        while process.is_alive() and count_rows(tmp_path) <= before:
            time.sleep(0.002)
        time.sleep(random_waits.uniform(0, 0.15))
        kills += process.is_alive()
        process.kill()
        process.join()
    run(tmp_path)
    print(f"killed {kills} times")
    assert kills
    assert_same(tmp_path, whole)


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, nothing is cleaned up."""


MOMENTS = {
    "rollout": (grpo_guard.session, "rollout"),
    "reward": (grpo_guard.train, "gather_scores"),
    "update": (grpo_guard.train, "accumulate"),
    "adaptation": (grpo_guard.train, "adapt_range"),
    "metrics": (folder_logger._Files, "log"),
    "histograms": (folder_logger, "_save_arrays"),
    "packing": (folder_logger, "_merge_histograms"),
    "pictures": (folder_logger, "save_image"),
    "state": (checkpoint, "async_save"),
    "export": (checkpoint.CheckpointWriter, "_export"),
    "card": (model_card, "write_card"),
    "evaluation": (grpo_guard.run_folder.OpenRun, "evaluate"),
}


@pytest.mark.parametrize(
    ("moment", "call"), [(moment, 1 + i % 2) for i, moment in enumerate(MOMENTS)]
)
def test_killed_at_every_kind_of_moment(whole, tmp_path, monkeypatch, moment, call):
    """Stop at the second or third call of a function, as if the process was killed there."""
    owner, name = MOMENTS[moment]
    real = getattr(owner, name)
    numbers = iter(range(1000))

    def die(*args, **kwargs):
        if next(numbers) == call:
            raise Killed
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, die)
        with pytest.raises(Killed):
            run(tmp_path)
    run(tmp_path)
    assert_same(tmp_path, whole)


def damage(state, how):
    """Damage the files of a state."""
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
        (state / SEAL).unlink()


@pytest.fixture(scope="module")
def shorter(tmp_path_factory):
    """Return the folder of a run of four iterations."""
    folder = tmp_path_factory.mktemp("shorter")
    run(folder, iterations=4)
    return folder


@pytest.mark.parametrize("how", ["torn", "flipped", "missing", "unsealed"])
def test_the_last_good_state_is_used(whole, shorter, tmp_path, caplog, how):
    folder = tmp_path / "run"
    shutil.copytree(shorter, folder)
    damage(folder / "state/000004", how)
    assert find_newest_state(folder) == folder / "state/000003"
    run(folder)
    assert f"{folder}/state/000004 is not used" in caplog.text
    assert_same(folder, whole)


def test_states_are_pruned_and_whole(whole):
    assert [path.name for path in sorted((whole / "state").iterdir())] == ["000005", "000006"]
    assert not any(find_flaw(state) for state in (whole / "state").iterdir())


def test_a_state_that_is_not_whole_is_refused_in_one_line(whole, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(whole / "state/000005", damaged)
    damage(damaged, "flipped")
    with pytest.raises(ConfigError, match=r"^resume=.*damaged is not whole \(.* changed since it"):
        run(tmp_path / "run", resume=str(damaged))
    with pytest.raises(ConfigError, match=r"^resume=.*nowhere is not whole \(it cannot be read"):
        run(tmp_path / "run", resume=str(tmp_path / "nowhere"))


def test_a_run_that_receives_a_signal_finishes_its_iteration(whole, tmp_path, monkeypatch):
    def stop_at_2(session, iteration):
        if iteration == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return iterate(session, iteration)

    with monkeypatch.context() as patch:
        patch.setattr("grpo_guard.train.iterate", stop_at_2)
        with pytest.raises(
            Stopped,
            match=r"^after iteration 3; the same command with output=",
        ):
            run(tmp_path)
    assert find_newest_state(tmp_path).name == "000003"
    assert load_policy(tmp_path, 3)
    run(tmp_path)
    assert_same(tmp_path, whole)


def test_a_signal_that_is_repeated_does_not_cut_off_the_last_state(tmp_path, monkeypatch):
    @contextmanager
    def close_late(writer):
        yield
        signal.raise_signal(signal.SIGTERM)
        writer.close()

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    monkeypatch.setattr(grpo_guard.run_folder, "closing", close_late)
    run(tmp_path, iterations=2)
    signal.signal(signal.SIGTERM, before)
    assert find_newest_state(tmp_path).name == "000002"


def test_fewer_iterations_than_a_state_has_are_refused(whole, tmp_path):
    message = r"^iterations=3 is less than the 5 that .* has; give more"
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, resume=str(whole / "state/000005"), iterations=3)


def test_resume_never_begins_anew(whole, tmp_path):
    run(tmp_path, iterations=2)
    run(tmp_path, resume="never")
    assert_same(tmp_path, whole)


def test_a_full_disk_costs_a_state_not_the_run(whole, tmp_path, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    run(tmp_path, iterations=2)
    with monkeypatch.context() as patch:
        patch.setattr("grpo_guard.lifecycle.checkpoint.async_save", fail)
        run(tmp_path, iterations=4)
    message = "the state after iteration 3 was not saved ([Errno 28] No space left on device)"
    assert message in caplog.text
    assert find_newest_state(tmp_path).name == "000002"
    run(tmp_path)
    assert_same(tmp_path, whole)


def test_the_best_checkpoint_stays(tmp_path):
    keep_best = Checkpoints(
        every=1, keep=1, export_every=100, best="eval/gold/grey", asynchronous=False
    )
    run(tmp_path, checkpoint=keep_best)
    golds = {
        row["iteration"]: row["eval/gold/grey"]
        for row in read_metrics(tmp_path)
        if "eval/gold/grey" in row
    }
    best = max(golds, key=golds.get)
    card = (tmp_path / "checkpoints/best/README.md").read_text()
    assert f"{best} iterations of reinforcement learning" in card
    # The last state is written before the last evaluation, which is that of iteration 6.
    notes = json.loads((find_newest_state(tmp_path) / "notes.json").read_text())
    assert notes["best"] == max(golds[iteration] for iteration in golds if iteration < 6)


def test_an_evaluation_without_a_number_is_not_the_best(tmp_path):
    """No later one would ever be higher than NaN or infinity."""
    exported = []
    writer = make_writer(tmp_path, best="score", export=exported.append)
    for number, value in enumerate((math.nan, -2.0, math.inf, -1.0, math.nan)):
        writer.after_evaluation(number, {"score": scalar(value)})
    assert writer.best == -1
    assert len(exported) == 2


def test_a_best_metric_that_is_not_measured_is_refused_at_the_first_evaluation(tmp_path):
    misspelt = Checkpoints(
        every=1, keep=1, export_every=100, best="eval/gold/gray", asynchronous=False
    )
    message = (
        "checkpoint.best=eval/gold/gray is not measured by the evaluations; choose from"
        " eval/gold/grey, eval/proxy/grey"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        run(tmp_path, checkpoint=misspelt)
    assert not (tmp_path / "metrics.jsonl").exists()
