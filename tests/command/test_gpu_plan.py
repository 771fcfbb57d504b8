"""The plan for a GPU: its commands exist, it goes on where it stopped, and it keeps its time."""

import json

import pytest
from composing import compose_run

from grpo_guard.command import bench, benchmarks
from grpo_guard.command.benches import gpu
from grpo_guard.console import cli
from grpo_guard.schema import ConfigError


def test_every_command_of_the_plan_can_be_built(tmp_path):
    """Such as its batches, which must divide."""
    for check in gpu.plan(tmp_path):
        command, *words = check.words
        if command == "bench":
            args, words = bench.make_parser().parse_known_args(words)
            assert args.benchmark in benchmarks.BENCHMARKS
        known = [word for word in words if not word.startswith(("+sweeps", "hydra/", "output="))]
        cli.build(compose_run(*known, "output=somewhere", missing="somewhere"))
    names = [check.name for check in gpu.plan(tmp_path)]
    assert len(set(names)) == len(names)


CHECKS = tuple(
    gpu.Check(name=name, question="?", words=("train", name), minutes=1) for name in ("a", "b", "c")
)


def run_with(codes, ran):
    def run(words, seconds, log):
        ran.append(words[1])
        log.write_text(f"output of {words[1]}\n")
        return codes.get(words[1], 0)

    return run


def test_a_plan_that_is_started_again_runs_what_is_not_done(tmp_path):
    ran = []
    gpu.run_plan(CHECKS, tmp_path, 1, run_with({"b": 1}, ran))
    assert ran == ["a", "b", "c"]
    ran.clear()
    outcomes = gpu.run_plan(CHECKS, tmp_path, 1, run_with({}, ran))
    assert ran == ["b"]
    assert [(outcome.name, outcome.code) for outcome in outcomes] == [("a", 0), ("b", 0), ("c", 0)]
    rows = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    assert [row["code"] for row in rows] == [0, 1, 0, 0]
    assert rows[1]["tail"] == ["output of b"]


def test_without_time_nothing_is_run(tmp_path):
    ran = []
    assert gpu.run_plan(CHECKS, tmp_path, 0, run_with({}, ran)) == []
    assert not ran


def test_a_command_that_takes_too_long_is_stopped(tmp_path):
    assert gpu.run_command(["train"], 0.01, tmp_path / "log") == gpu.STOPPED
    assert gpu.run_command(["nothing"], 60, tmp_path / "log") == 2
    assert "nothing is no command" in (tmp_path / "log").read_text()


def test_without_a_gpu_a_line_says_so():
    with pytest.raises(ConfigError, match="no GPU is here"):
        gpu.require_gpu()
