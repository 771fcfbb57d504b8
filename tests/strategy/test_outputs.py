"""Ranks that differ: in `output`, in a file of prompts, and only one of them is stopped."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from toy import ADAPTIVE, experiment, load_policy, read_metrics

from grpo_guard.console.launch import find_free_port
from grpo_guard.lifecycle.states import find_flaw, find_newest_state
from grpo_guard.train import train

WORKER = Path(__file__).parent / "outputs_worker.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Let two ranks run the worker, and return the folder in which they write."""
    folder = tmp_path_factory.mktemp("outputs")
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port())}
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=240)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    return folder


def test_all_ranks_write_into_the_folder_of_rank_0_and_resume_from_it(folder):
    assert not (folder / "run_1").exists()
    assert [row["iteration"] for row in read_metrics(folder / "run_0")] == [0, 1, 2, 3]
    states = sorted((folder / "run_0" / "state").iterdir())
    assert [state.name for state in states] == ["000002", "000003"]
    assert not any(find_flaw(state) for state in states)
    weights = load_policy(folder / "run_0", 3)
    assert all(value.isfinite().all() for value in weights.values())


def test_the_clip_range_follows_the_rows_of_all_ranks(folder, tmp_path):
    """Compare with one process, which has all rows; half of them would give another quantile."""
    train(experiment(tmp_path, clipping=ADAPTIVE, iterations=3), {})
    for ours, theirs in zip(read_metrics(folder / "run_0"), read_metrics(tmp_path), strict=True):
        for key, value in theirs.items():
            if key.startswith("clip/range/"):
                assert ours[key] == pytest.approx(value, rel=1e-4), key


def test_a_signal_to_one_rank_stops_all_after_the_same_iteration(folder):
    messages = [json.loads((folder / f"message_{rank}.json").read_text()) for rank in range(2)]
    assert messages[0] == messages[1]
    assert messages[0].startswith("after iteration 2; the same command with")
    assert find_newest_state(folder / "stopped").name == "000002"


def test_prompts_that_differ_between_ranks_are_refused_on_all_of_them(folder):
    """Their order counts: images are dealt by the place of their prompt."""
    here = socket.gethostname()
    for rank in range(2):
        assert json.loads((folder / f"refusal_{rank}.json").read_text()) == (
            f"data.path=own.txt: the training prompts of rank 1 on {here} are not those of rank 0"
            f" on {here}; give all machines the same files, and the same version of grpo_guard"
        )
    assert not (folder / "other_prompts" / "metrics.jsonl").exists()
