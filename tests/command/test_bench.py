"""What bench.py prints: a row for each variant, reward or font, with consistent figures."""

import argparse
import io
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from toy import experiment

from grpo_guard.command import bench, benchmarks
from grpo_guard.command.benches import (
    compiling,
    iterations,
    memory,
    pages,
    rewards,
    spelling,
    standins,
)
from grpo_guard.console import cli, reading
from grpo_guard.cost.memory import Memory
from grpo_guard.reward import image_reward, rewards_from_parts
from grpo_guard.session import prepare
from grpo_guard.types import Prompt

ARGUMENTS = argparse.Namespace(
    rounds=2,
    objectives=["guard", "vanilla"],
    rewards=["statistics", "geneval"],
    images=10,
    runs=3,
    iterations=3,
)
CPU = torch.device("cpu")


@pytest.fixture
def run(monkeypatch):
    """Run a benchmark; returns the rows of its table as lists of cells, and all printed lines.

    Experiments are the toy one.
    """
    console = Console(record=True, width=200, file=io.StringIO())
    monkeypatch.setattr(benchmarks, "console", console)
    for module in (iterations, compiling):
        monkeypatch.setattr(
            module,
            "prepare_sessions",
            lambda names, _: {name: prepare(experiment()) for name in names},
        )

    def run_benchmark(name):
        benchmarks.BENCHMARKS[name](ARGUMENTS, [])
        lines = console.export_text().splitlines()
        rows = [line.split("│")[1:-1] for line in lines if line.startswith("│")]
        return [[cell.strip() for cell in row] for row in rows], lines

    return run_benchmark


def test_objectives(run):
    rows, _ = run("objectives")
    assert [row[0] for row in rows] == ["guard", "vanilla"]
    assert rows[0][-1] == "1.000 (1.000 to 1.000)"
    assert all(len(row) == 1 + len(iterations.PARTS) + 1 for row in rows)


def test_diagnostics(run):
    rows, lines = run("diagnostics")
    assert [row[0] for row in rows] == ["bare vanilla", "guard"]
    kept = {line.split(":")[0]: re.search(r"\d+", line)[0] for line in lines if "bytes" in line}
    assert kept == dict.fromkeys(("vanilla", "guard"), str(6 * 12 * 4))  # 6 states of 12 numbers


def test_precision(run):
    rows, _ = run("precision")
    assert [row[0] for row in rows] == ["1e-02", "1e-03", "1e-04"]
    assert all(float(closed) < float(subtracted) for _, closed, subtracted, _ in rows)


def test_rewards(run):
    rows, _ = run("rewards")
    assert [row[0] for row in rows] == ["statistics", "geneval"]
    for _, images, rate, milliseconds in rows:
        assert images == "10"
        assert float(rate) * float(milliseconds) == pytest.approx(1000, rel=0.02)


def test_asynchronous(run):
    rows, lines = run("asynchronous")
    assert [row[0] for row in rows] == ["after", "during"]
    assert re.fullmatch(r"hidden: \S+ \(\S+ to \S+\) of the reward's \S+ s", lines[-1])


def test_spelling(run, monkeypatch):
    build_reward = reading.build_reward
    monkeypatch.setattr(reading, "build_reward", lambda text: build_reward(f"{text} workers=0"))
    monkeypatch.setattr(spelling, "SIZES", (4, 24))
    monkeypatch.setattr(spelling, "FONTS", {"STIX": "STIXGeneral"})
    rows, _ = run("spelling")
    figures = {(row[0], row[1]): [float(cell) for cell in row[3:]] for row in rows}
    assert list(figures) == [("STIX", "4"), ("STIX", "24"), ("the world's", "-")]
    assert figures["STIX", "24"][0] == 1
    assert figures["STIX", "4"][1] < 0.5
    assert figures["the world's", "-"][0] >= 0.8
    assert all(exact <= alike <= 1 and ms > 0 for exact, alike, ms in figures.values())


def test_bare_updates_move_the_policy_as_full_ones_do():
    """Without diagnostics an iteration changes the weights exactly as it does with them."""

    def train_once(strip):
        session = prepare(experiment())
        variant, context = iterations.strip_diagnostics(session) if strip else (session, None)
        if context is None:
            iterations.iterate(variant, 0)
        else:
            with context:
                iterations.iterate(variant, 0)
        return [p.detach() for p in session.learner.parameters]

    for bare, full in zip(train_once(True), train_once(False), strict=True):
        assert torch.equal(bare, full)


def test_the_share_that_is_hidden():
    """Calls of 1 + 2 s and 3 + 1 s count, and 2 s and 1 s of them are saved."""
    seconds = rewards.sum_rounds([9, 9, 1, 2, 3, 1], 2)
    after = [{"rollout": 5, "reward": 1}] * 2
    during = [{"rollout": 3, "reward": 1}, {"rollout": 3, "reward": 2}]
    assert seconds == [3, 4]
    assert rewards.hidden_shares(after, during, seconds) == [2 / 3, 1 / 4]
    line = rewards.describe_hidden([0.5, 0.7, 0.9], [1, 2, 6])
    assert line == "hidden: 0.70 (0.50 to 0.90) of the reward's 2.00 s"


def test_calls_are_timed_and_pass_through():
    def score(images, prompts):
        return rewards_from_parts(sum=images.sum((1, 2, 3)))

    timed = rewards.TimedScorer(score)
    images = torch.rand(3, 3, 2, 2)
    assert torch.equal(timed(images, [Prompt(text="")] * 3).total, images.sum((1, 2, 3)))
    assert len(timed.seconds) == 1
    assert timed.seconds[0] > 0


@pytest.mark.parametrize(
    ("name", "side"), [("ocr", 64), ("mixture", 64), ("geneval_coco", 96), ("hpsv2", 96)]
)
def test_pictures_suit_the_reward(choice, name, side):
    reward = choice("reward", name)
    prompts, images = rewards.draw_pictures(reward, 10, side)
    assert all(map(reward.accepts, prompts))
    first, last = prompts[0].text, prompts[-1].text
    assert [prompt.text for prompt in prompts] == [first] * rewards.GROUP + [last] * 2
    assert images.shape == (10, 3, side, side)
    assert (images.min() >= 0) & (images.max() <= 1)


def test_every_timed_reward_is_a_choice():
    choices = {path.stem for path in Path(cli.CONF, "reward").glob("*.yaml")}
    assert {*bench.EMBEDDED_REWARDS, *standins.WRITERS} <= choices


def test_random_weights_are_read_as_published_ones(monkeypatch, tmp_path):
    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    monkeypatch.setattr(image_reward, "VISION", {**image_reward.VISION, **small, "image_size": 32})
    monkeypatch.setattr(image_reward, "TEXT", {**image_reward.TEXT, **small})
    settings = standins.WRITERS["image_reward"](tmp_path)
    score = reading.build_reward(f"image_reward {settings}").load(CPU)
    assert not score(torch.rand(2, 3, 32, 32), [Prompt(text="a cat")] * 2).failed.any()


def test_random_weights_are_spread():
    state = standins.fill_randomly(
        {"a": torch.empty(300, 7000, device="meta"), "b": torch.empty((), device="meta")}
    )
    assert state["a"].shape == (300, 7000)
    assert state["b"].shape == ()
    assert state["a"].std().item() == pytest.approx(standins.SPREAD, rel=0.01)


def test_a_setting_that_cannot_be_used_is_explained_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench.py", "memory", "microbatch=7"])
    with pytest.raises(SystemExit, match="2"):
        bench.main()
    first, error = capsys.readouterr().err.splitlines()
    assert first == "loading ..."
    assert error.startswith("error: ")
    assert "do not divide into microbatch=7" in error


def test_pages(run, monkeypatch):
    monkeypatch.setattr(pages, "ARMS", ("vanilla", "guard"))
    monkeypatch.setattr(pages, "EVERY", 1)
    # files of figures take most of the time, and have tests of their own
    monkeypatch.setattr("grpo_guard.report.page.write_figures", lambda *_: None)
    rows, lines = run("pages")
    assert [row[0] for row in rows] == ["read", "analyse", "write", "all"]
    assert any(re.search(r"index.html: \d\.\d MB", line) for line in lines)


def test_every_benchmark_has_a_function():
    assert tuple(benchmarks.BENCHMARKS) == bench.BENCHMARKS


@pytest.mark.parametrize(
    ("gib", "line"),
    [
        (21.3, "fits 24 GiB, 2.7 to spare: 21.3 GiB in its worst phase, update"),
        (150, "fits no card: needs 150.0 GiB, and the largest has 140"),
    ],
)
def test_memory_answers_first(gib, line):
    size = int(gib * memory.GIB)
    phases = {"update": {"gradients": size // 2}}
    predicted = Memory(held={"weights": size // 2}, phases=phases, state=0)
    assert memory.describe_fit(predicted) == line


def test_compile(run):
    rows, lines = run("compile")
    assert [row[0] for row in rows] == ["eager", "compiled"]
    assert rows[0][-1] == "1.000 (1.000 to 1.000)"
    assert "compiling saves" in lines[-1] or "it pays from" in " ".join(lines[-2:])


@pytest.mark.parametrize(
    ("seconds", "ending"),
    [(8.0, "it pays from 53 iterations on"), (10.0, "compiling saves nothing here")],
)
def test_compiling_pays_where_it_has_saved_what_it_costs(seconds, ending):
    costs = {
        "eager": compiling.Cost(start=10.0, iterations=(9.0, 10.0, 11.0)),
        "compiled": compiling.Cost(start=115.0, iterations=(seconds,)),
    }
    assert compiling.describe_gain(costs).endswith(ending)
