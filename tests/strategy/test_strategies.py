"""Results do not depend on where a run computes: two processes under every strategy against one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy import records
from worker import AVERAGED, SINGLE, Contest, run, strategies

from grpo_guard.ema.average import Average

WORKER = Path(__file__).parent / "worker.py"
NAMES = list(strategies(2))
MACHINE = ("time/", "throughput/", "memory/")


def started(rank, port, folder):
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cpu",
    }
    environment = (
        os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    )
    with (folder / f"{rank}.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, str(WORKER), str(folder)], env=environment, stdout=log, stderr=log
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The runs of one process, and those of two that share everything else."""
    folder = tmp_path_factory.mktemp("strategies")
    run(folder, "single", SINGLE)
    run(
        folder,
        "single_averaged",
        SINGLE,
        iterations=2,
        ema=Average(decay=0.5, every=1, on_cpu=False),
    )
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
    workers = [started(rank, port, folder) for rank in range(2)]
    try:
        codes = [worker.wait(timeout=280) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert codes == [0, 0], "\n".join(
        (folder / f"{rank}.log").read_text()[-3000:] for rank in range(2)
    )
    return folder


def policy(folder, iteration=5):
    return torch.load(folder / f"checkpoints/{iteration:06d}/policy.pt")


def same(ours, theirs):
    """The metrics of two runs to 1e-6, those of ratios, which are small, to a ten-thousandth of their spread."""
    assert len(ours) == len(theirs)
    for row, wanted in zip(ours, theirs, strict=True):
        assert set(row) == set(wanted)
        for key in (key for key in wanted if not key.startswith(MACHINE)):
            scale = 1e-4 * wanted[key.replace("/mean", "/std")] if key.startswith("ratio") else 1e-6
            assert row[key] == pytest.approx(wanted[key], rel=1e-6, abs=scale), key


def nearly(ours, theirs):
    return all(torch.allclose(ours[key], theirs[key], rtol=0, atol=1e-6) for key in theirs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.timeout(300)
def test_two_processes_train_as_one_does(folder, name):
    same(records(folder / name), records(folder / "single"))
    assert nearly(policy(folder / name), policy(folder / "single"))
    first, pictures = (
        (folder / run / "samples/000000.png").read_bytes() for run in (name, "single")
    )
    assert first == pictures
    told, wanted = (
        json.loads((folder / run / "samples/000000.json").read_text()) for run in (name, "single")
    )
    assert len(wanted) == 3
    for one, other in zip(told, wanted, strict=True):
        assert one["notes"] == other["notes"] == {"eval/gold/grey": [other["prompt"]]}
        assert one["scores"] == pytest.approx(other["scores"], rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_one_process_goes_on_with_two(folder, name):
    assert nearly(policy(folder / f"{name}_gone_on"), policy(folder / "single"))
    same(records(folder / f"{name}_gone_on"), records(folder / "single")[2:])


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_two_processes_goes_on_with_one(folder, name):
    state = folder / f"{name}/state/000002"
    run(folder, f"{name}_alone", SINGLE, resume=str(state))
    assert nearly(policy(folder / f"{name}_alone"), policy(folder / "single"))


@pytest.mark.parametrize("name", AVERAGED)
def test_averages_are_the_same(folder, name):
    assert nearly(policy(folder / f"{name}_averaged", 2), policy(folder / "single_averaged", 2))
    assert not nearly(policy(folder / f"{name}_averaged", 2), policy(folder / name, 2))


@pytest.mark.parametrize("name", NAMES)
def test_as_much_is_exchanged_as_predicted(folder, name):
    """But for numbers that are exchanged one by one, such as a norm."""
    for rank in range(2):
        predicted, counted = json.loads((folder / f"{name}_{rank}.traffic.json").read_text())
        assert predicted
        assert predicted.keys() <= counted.keys()
        for message, size in counted.items():
            assert 0 <= size - predicted.get(message, 0) <= 64, message


def test_a_reward_that_compares_sees_whole_groups(folder):
    """An evaluation has one picture of each prompt, so there a comparison says nothing."""
    run(folder, "single_compared", SINGLE, iterations=2, reward=Contest())
    ours, theirs = (
        [
            {key: value for key, value in row.items() if key != "eval/proxy/contest"}
            for row in records(folder / name)
        ]
        for name in ("ddp_compared", "single_compared")
    )
    same(ours, theirs)
    assert nearly(policy(folder / "ddp_compared", 2), policy(folder / "single_compared", 2))


def test_who_does_not_come_is_named(folder):
    told = (folder / "hung_0.txt").read_text()
    assert told.startswith("rank 0 waited 3 s at the end of an iteration: ")
    assert "Ranks 1 failed to pass monitoredBarrier" in told
