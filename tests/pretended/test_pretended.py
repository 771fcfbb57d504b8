"""A run on a pretended GPU: nothing meets a tensor of another device, and numbers are the CPU's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toy import read_repeatable_metrics

import pretended

WORKER = Path(__file__).parent / "worker.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Let a process train on the device, which torch would not forget in this one."""
    library = pretended.build()
    if library is None:
        pytest.skip("there is no compiler (g++) that could build the pretended device")
    folder = tmp_path_factory.mktemp("pretended")
    worker = [sys.executable, str(WORKER), str(library), str(folder)]
    ended = subprocess.run(worker, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def report(folder):
    return json.loads((folder / "report.json").read_text())


@pytest.mark.timeout(300)
def test_a_run_has_the_numbers_of_the_cpu(folder):
    ours, theirs = (read_repeatable_metrics(folder / name) for name in ("device", "cpu"))
    assert len(ours) == len(theirs) == 4
    for row, expected in zip(ours, theirs, strict=True):
        assert row == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_a_run_resumes_exactly(folder):
    resumed, whole = (read_repeatable_metrics(folder / name) for name in ("resumed", "device"))
    assert resumed == whole[2:]


def test_nothing_of_a_job_lives_when_the_next_one_is_built(report):
    assert report["live"] == [0, 0]


def test_the_plan_for_a_gpu_can_be_followed(report):
    assert report["planned"] == ["loop_sd3_tiny_lora_bfloat16", "resume"]


def test_a_shortage_names_what_to_change(report):
    assert report["shortage"].startswith("pretended:0 is out of memory in the phase rollout:")
    assert report["shortage"].endswith("lower microbatch or backbone.microbatch")


def test_the_prediction_of_memory_knows_autocasts_lists(report):
    for name, (actual, imitated) in report["autocast"].items():
        assert imitated == actual, name


def test_the_loop_waits_for_a_gpu_once_per_microbatch_and_never_per_step(report):
    plain, longer, smaller = (report["waits"][name] for name in ("plain", "longer", "smaller"))
    # two microbatches of 32 rows in each of two updates; four more steps make them four,
    # and microbatches of 8 rows make them eight
    assert longer == plain | {"update": plain["update"] + 4, "all": plain["all"] + 4}
    assert smaller == plain | {"update": plain["update"] + 12, "all": plain["all"] + 12}
    # scoring four groups is part of the rollout
    assert plain["rollout"] < 70
    assert plain["all"] < 140
