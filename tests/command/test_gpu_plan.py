"""The plan for a GPU: its commands exist, it goes on where it stopped, and it keeps its time."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from composing import compose_run

from grpo_guard.command import bench, benchmarks
from grpo_guard.command.benches import gpu, gpu_plan
from grpo_guard.console import cli, reading
from grpo_guard.reward import Reward
from grpo_guard.schema import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def test_every_command_of_the_plan_can_be_built(tmp_path):
    """Such as its batches, which must divide."""
    for check in gpu_plan.plan(tmp_path):
        if check.module != "grpo_guard.command":
            continue
        command, *words = check.words
        if command == "bench":
            args, words = bench.make_parser().parse_known_args(words)
            assert args.benchmark in benchmarks.BENCHMARKS
        known = [word for word in words if not word.startswith(("+sweeps", "hydra/", "output="))]
        cli.build(compose_run(*known, "output=somewhere", missing="somewhere"))
    names = [check.name for check in gpu_plan.plan(tmp_path)]
    assert len(set(names)) == len(names)


CHECKS = tuple(
    gpu_plan.Check(name=name, question="?", words=("train", name), minutes=1)
    for name in ("a", "b", "c")
)


def run_with(codes, ran):
    def run(check, seconds, log):
        ran.append(check.name)
        log.write_text(f"output of {check.name}\n")
        return codes.get(check.name, 0)

    return run


def test_a_plan_that_is_started_again_runs_what_is_not_done(tmp_path):
    ran = []
    gpu.run_plan(CHECKS, tmp_path, 1, "H100", run_with({"b": 1}, ran))
    assert ran == ["a", "b", "c"]
    ran.clear()
    outcomes = gpu.run_plan(CHECKS, tmp_path, 1, "H100", run_with({}, ran))
    assert ran == ["b"]
    assert [(outcome.name, outcome.code) for outcome in outcomes] == [("a", 0), ("b", 0), ("c", 0)]
    rows = gpu.read_outcomes(tmp_path / "figures.jsonl")
    assert [row.code for row in rows] == [0, 1, 0, 0]
    assert rows[1].tail == ("output of b",)
    assert {row.device for row in rows} == {"H100"}
    assert rows[0].command == "-m grpo_guard.command train a"


def test_what_was_done_on_another_gpu_is_done_again(tmp_path):
    ran = []
    for device in ("A100", "H100", "A100"):
        gpu.run_plan(CHECKS, tmp_path, 1, device, run_with({}, ran))
    assert ran == ["a", "b", "c"] * 2


def test_a_torn_line_loses_its_own_check_alone(tmp_path):
    """As a full disk or a preempted machine leaves it."""
    ran = []
    gpu.run_plan(CHECKS, tmp_path, 1, "H100", run_with({}, ran))
    figures = tmp_path / "figures.jsonl"
    figures.write_text(figures.read_text().rstrip("\n")[:-20])
    ran.clear()
    for _ in range(2):
        outcomes = gpu.run_plan(CHECKS, tmp_path, 1, "H100", run_with({}, ran))
        assert [outcome.name for outcome in outcomes] == ["a", "b", "c"]
    assert ran == ["c"]


def test_without_time_nothing_is_run(tmp_path):
    ran = []
    assert gpu.run_plan(CHECKS, tmp_path, 0, "H100", run_with({}, ran)) == []
    assert not ran


def test_what_a_command_printed_before_it_was_stopped_is_kept(tmp_path, monkeypatch):
    """Python keeps what goes to a file until there is more of it."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    (tmp_path / "endless.py").write_text("import time\nprint('iteration 0')\ntime.sleep(600)\n")
    real = subprocess.Popen

    def start(command, **options):
        return real([sys.executable, str(tmp_path / "endless.py")], **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    assert gpu.run_command(CHECKS[0], 5, tmp_path / "log") == gpu.STOPPED
    assert (tmp_path / "log").read_text() == "iteration 0\n"


def test_a_command_that_takes_too_long_is_stopped(tmp_path):
    assert gpu.run_command(CHECKS[0], 0.01, tmp_path / "log") == gpu.STOPPED
    unknown = gpu_plan.Check(name="a", question="?", words=("nothing",), minutes=1)
    assert gpu.run_command(unknown, 60, tmp_path / "log") == 2
    assert "nothing is no command" in (tmp_path / "log").read_text()


def test_the_plan_runs_the_tests_as_make_does(tmp_path):
    """On all cores, instead of on two."""
    (check,) = (check for check in gpu_plan.plan(tmp_path) if check.module == "pytest")
    (line,) = re.findall(r"-m pytest (.*)", (ROOT / "Makefile").read_text())
    *options, quiet, folder = check.words
    assert " ".join(options) == line.replace("-n 2", "-n auto")
    assert quiet == "-q"
    assert (ROOT / folder).is_dir()


def test_a_check_that_failed_says_why(tmp_path, capsys):
    gpu.run_plan(CHECKS[:1], tmp_path, 1, "H100", run_with({"a": 1}, []))
    assert "a: failed, code 1, 0 s: output of a" in capsys.readouterr().out


def test_a_line_of_another_version_counts_as_not_done(tmp_path):
    ran = []
    (tmp_path / "figures.jsonl").write_text('{"name": "a", "code": 0, "tail": []}\n{}\n')
    gpu.run_plan(CHECKS[:1], tmp_path, 1, "H100", run_with({}, ran))
    assert ran == ["a"]


def test_one_reward_that_fails_loses_no_other(tmp_path):
    rewards = [c.words for c in gpu_plan.plan(tmp_path) if c.words[:2] == ("bench", "rewards")]
    names = [words[words.index("--rewards") + 1 :] for words in rewards]
    assert len(names) > 1
    assert all(len(name) == 1 for name in names)
    for (name,) in names:
        assert isinstance(reading.build_reward(name), Reward)


def test_the_gpu_is_named(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(gpu, "NAME_GPU", "print('NVIDIA H100 80GB HBM3')")
    assert gpu.require_gpu() == "NVIDIA H100 80GB HBM3"
    monkeypatch.setattr(gpu, "NAME_GPU", "raise RuntimeError('devices are busy or unavailable')")
    with pytest.raises(ConfigError, match=r"cannot be used \(RuntimeError: devices are busy"):
        gpu.require_gpu()


def test_without_a_gpu_a_line_says_so():
    with pytest.raises(ConfigError, match="no GPU is here"):
        gpu.require_gpu()
