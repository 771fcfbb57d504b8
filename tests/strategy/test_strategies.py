"""Results do not depend on the strategy: two processes under each of them against one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy import Indifferent, read_metrics
from worker import AVERAGE, AVERAGED, SINGLE, UNEVEN, Contest, run, strategies

from grpo_guard.console.launch import find_free_port
from grpo_guard.old_policy.tangent import TangentOldPolicy

WORKER = Path(__file__).parent / "worker.py"
NAMES = list(strategies(2))
MACHINE = ("time/", "throughput/", "memory/")
"""Beginnings of the keys of metrics that depend on the machine."""


def start_worker(rank, port, folder):
    environment = os.environ | {
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cpu",
        # Where a process dies natively, its log says what every thread was doing.
        "PYTHONFAULTHANDLER": "1",
        "OMP_NUM_THREADS": "1",
    }
    with (folder / f"{rank}.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, str(WORKER), str(folder)], env=environment, stdout=log, stderr=log
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Do the runs of one process, then those of two, in one folder."""
    folder = tmp_path_factory.mktemp("strategies")
    run(folder, "single", SINGLE)
    run(folder, "single_uneven", SINGLE, iterations=2, microbatch=4, reward=Indifferent())
    run(folder, "single_tangent", SINGLE, iterations=2, old_policy=TangentOldPolicy())
    run(folder, "single_averaged", SINGLE, iterations=4, ema=AVERAGE)
    port = find_free_port()
    workers = [start_worker(rank, port, folder) for rank in range(2)]
    try:
        codes = [worker.wait(timeout=280) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    logs = [(folder / f"{rank}.log").read_text()[-3000:] for rank in range(2)]
    assert codes == [0, 0], "\n".join(logs)
    return folder


def load_policy(folder, iteration=5):
    return torch.load(folder / f"checkpoints/{iteration:06d}/policy.pt")


def assert_same_metrics(ours, theirs):
    """Compare metrics to 1e-6; ratios, which are small, to a ten-thousandth of their spread."""
    assert len(ours) == len(theirs)
    for row, expected in zip(ours, theirs, strict=True):
        assert set(row) == set(expected)
        for key in expected:
            if key.startswith(MACHINE):
                continue
            spread = expected[key.replace("/mean", "/std")] if key.startswith("ratio") else 1e-2
            assert row[key] == pytest.approx(expected[key], rel=1e-6, abs=1e-4 * spread), key


def is_close(ours, theirs):
    """Whether two policies agree to 1e-6."""
    return all(torch.allclose(ours[key], theirs[key], rtol=0, atol=1e-6) for key in theirs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.timeout(300)
def test_two_processes_train_as_one_does(folder, name):
    assert_same_metrics(read_metrics(folder / name), read_metrics(folder / "single"))
    assert is_close(load_policy(folder / name), load_policy(folder / "single"))
    images, expected_images = (
        (folder / run / "samples/000000.png").read_bytes() for run in (name, "single")
    )
    assert images == expected_images
    notes, expected_notes = (
        json.loads((folder / run / "samples/000000.json").read_text()) for run in (name, "single")
    )
    assert len(expected_notes) == 3
    for note, expected in zip(notes, expected_notes, strict=True):
        assert note["notes"] == expected["notes"] == {"eval/gold/grey": [expected["prompt"]]}
        assert note["scores"] == pytest.approx(expected["scores"], rel=1e-5)
    scores, expected_scores = (
        [
            json.loads(line)
            for line in (folder / run / "prompt_scores.jsonl").read_text().splitlines()
        ]
        for run in (name, "single")
    )
    for row, expected_row in zip(scores, expected_scores, strict=True):
        assert row == {key: pytest.approx(v, rel=1e-5) for key, v in expected_row.items()}


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_resume_the_state_of_one(folder, name):
    assert is_close(load_policy(folder / f"{name}_resumed"), load_policy(folder / "single"))
    assert_same_metrics(
        read_metrics(folder / f"{name}_resumed"), read_metrics(folder / "single")[2:]
    )


@pytest.mark.parametrize("name", NAMES)
def test_one_process_resumes_the_state_of_two(folder, name):
    state = folder / f"{name}/state/000002"
    run(folder, f"{name}_alone", SINGLE, resume=str(state))
    assert is_close(load_policy(folder / f"{name}_alone"), load_policy(folder / "single"))


def test_two_processes_measure_the_derivative_that_one_does(folder):
    assert_same_metrics(
        read_metrics(folder / "ddp_tangent"), read_metrics(folder / "single_tangent")
    )


@pytest.mark.parametrize("name", UNEVEN)
def test_processes_with_fewer_rows_to_learn_from_keep_step(folder, name):
    uneven = load_policy(folder / f"{name}_uneven", 2)
    assert is_close(uneven, load_policy(folder / "single_uneven", 2))
    assert not is_close(uneven, load_policy(folder / name, 2))


@pytest.mark.parametrize("name", AVERAGED)
def test_averages_are_the_same(folder, name):
    """Also in the iterations after an evaluation, which drew with the averaged weights."""
    averaged = load_policy(folder / f"{name}_averaged", 4)
    assert is_close(averaged, load_policy(folder / "single_averaged", 4))
    assert not is_close(averaged, load_policy(folder / name, 4))
    rows, expected = (read_metrics(folder / f"{n}_averaged") for n in (name, "single"))
    assert_same_metrics(rows, expected)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("zero")])
def test_deepspeeds_engine_samples_as_the_policy_in_it(folder, name):
    """Bit by bit, in rollouts and evaluations, on untrained and on trained weights."""
    first, *others = (torch.load(folder / f"{name}_{rank}.latents.pt") for rank in range(2))
    assert len(first) == 6
    for engine, inner in first:
        assert torch.equal(engine, inner)
    assert not torch.equal(first[0][0], first[2][0])
    for drawn in others:
        assert all(torch.equal(a, b) for a, b in zip(sum(first, ()), sum(drawn, ()), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_predicted_traffic_is_what_is_exchanged(folder, name):
    """Single numbers, such as a norm, are not predicted."""
    for rank in range(2):
        predicted, counted = json.loads((folder / f"{name}_{rank}.traffic.json").read_text())
        assert predicted
        assert predicted.keys() <= counted.keys()
        for message, size in counted.items():
            assert 0 <= size - predicted.get(message, 0) <= 64, message


def test_a_reward_that_compares_sees_whole_groups(folder):
    """Evaluations are left out: they have one image of each prompt and nothing to compare."""
    run(folder, "single_compared", SINGLE, iterations=2, reward=Contest())
    ours, theirs = (
        [
            {key: value for key, value in row.items() if key != "eval/proxy/contest"}
            for row in read_metrics(folder / name)
        ]
        for name in ("ddp_compared", "single_compared")
    )
    assert_same_metrics(ours, theirs)
    policies = [load_policy(folder / name, 2) for name in ("ddp_compared", "single_compared")]
    assert is_close(*policies)


def test_missing_ranks_are_named(folder):
    message = (folder / "missing_0.txt").read_text()
    assert message.startswith("rank 0 waited 3 s at the end of an iteration: ")
    assert "Ranks 1 failed to pass monitoredBarrier" in message
    assert message.endswith("names, or raise strategy.timeout")
