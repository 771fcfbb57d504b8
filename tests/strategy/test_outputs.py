"""Ranks whose `output` resolves differently, such as by the second in which they start."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from toy import records

from grpo_guard.lifecycle.checkpoint import find_flaw
from lib.launch import find_free_port

WORKER = Path(__file__).parent / "outputs_worker.py"


def test_all_ranks_write_into_the_folder_of_rank_0_and_resume_from_it(tmp_path):
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port())}
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(tmp_path)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=240)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    assert [path.name for path in tmp_path.iterdir()] == ["run_0"]
    assert [row["iteration"] for row in records(tmp_path / "run_0")] == [0, 1, 2, 3]
    states = sorted((tmp_path / "run_0" / "state").iterdir())
    assert [state.name for state in states] == ["000002", "000003"]
    assert not any(find_flaw(state) for state in states)
    policy = torch.load(tmp_path / "run_0" / "checkpoints" / "000003" / "policy.pt")
    assert all(value.isfinite().all() for value in policy.values())
