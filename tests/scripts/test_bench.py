"""What the benchmark prints: a row for each variant, reward or font, with figures that belong together."""

import argparse
import io
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from toy import experiment

import bench as script
from benches import rewards as pace
from benches import spelling, standins
from grpo_guard.reward import image_reward, rewards
from grpo_guard.session import prepare
from grpo_guard.types import Prompt
from lib import cli, reading

GIVEN = {
    "rounds": 2,
    "objectives": ["guard", "vanilla"],
    "rewards": ["statistics", "geneval"],
    "images": 10,
}
CPU = torch.device("cpu")


@pytest.fixture
def printed(monkeypatch):
    """The rows of the table that a verb prints, and its last line; experiments are the toy one."""
    monkeypatch.setattr(
        script, "sessions", lambda names, _: {name: prepare(experiment()) for name in names}
    )
    monkeypatch.setattr(script, "console", Console(record=True, width=200, file=io.StringIO()))

    def run(verb):
        getattr(script, verb)(argparse.Namespace(**GIVEN), [])
        lines = script.console.export_text().splitlines()
        rows = [
            [cell.strip() for cell in line.split("│")[1:-1]]
            for line in lines
            if line.startswith("│")
        ]
        return {
            tuple(cells[:-3]) if verb == "words" else cells[0]: cells[1:] for cells in rows
        }, lines

    return run


def test_objectives(printed):
    rows, _ = printed("objectives")
    assert list(rows) == ["guard", "vanilla"]
    assert rows["guard"][-1] == "1.000 (1.000 to 1.000)"
    assert all(len(cells) == len(script.PARTS) + 1 for cells in rows.values())


def test_diagnostics(printed):
    rows, lines = printed("diagnostics")
    assert list(rows) == ["vanilla, bare", "guard"]
    kept = {line.split(":")[0]: re.search(r"\d+", line)[0] for line in lines if "bytes" in line}
    assert kept == dict.fromkeys(("vanilla", "guard"), str(6 * 12 * 4))  # 6 states of 12 numbers


def test_precision(printed):
    rows, _ = printed("precision")
    assert list(rows) == ["1e-02", "1e-03", "1e-04"]
    assert all(float(closed) < float(subtracted) for closed, subtracted, _ in rows.values())


def test_rewards(printed):
    rows, _ = printed("rewards")
    assert list(rows) == ["statistics", "geneval"]
    for images, rate, ms in rows.values():
        assert images == "10"
        assert float(rate) * float(ms) == pytest.approx(1000, rel=0.02)


def test_asynchronous(printed):
    rows, lines = printed("asynchronous")
    assert list(rows) == ["after", "beside"]
    assert re.fullmatch(r"hidden: \S+ \(\S+ to \S+\) of the reward's \S+ s", lines[-1])


def test_spelling(printed, monkeypatch):
    made = reading.reward
    monkeypatch.setattr(reading, "reward", lambda text: made(f"{text} workers=0"))
    monkeypatch.setattr(spelling, "SIZES", (4, 24))
    monkeypatch.setattr(spelling, "FONTS", {"STIX": "STIXGeneral"})
    rows, _ = printed("words")
    found = {key[:2]: [float(cell) for cell in cells[2:]] for key, cells in rows.items()}
    assert list(found) == [("STIX", "4"), ("STIX", "24"), ("the world's", "-")]
    assert found["STIX", "24"][0] == 1
    assert found["STIX", "4"][1] < 0.5
    assert found["the world's", "-"][0] >= 0.8
    assert all(exact <= alike <= 1 and ms > 0 for exact, alike, ms in found.values())


def test_the_share_that_is_hidden():
    """Of calls 1 + 2 and 3 + 1, after a first iteration that does not count, 2 s and 1 s are saved."""
    seconds = pace.own([9, 9, 1, 2, 3, 1], 2)
    after, beside = (
        [{"rollout": 5, "reward": 1}] * 2,
        [{"rollout": 3, "reward": 1}, {"rollout": 3, "reward": 2}],
    )
    assert seconds == [3, 4]
    assert pace.hidden(after, beside, seconds) == [2 / 3, 1 / 4]
    assert (
        pace.told([0.5, 0.7, 0.9], [1, 2, 6])
        == "hidden: 0.70 (0.50 to 0.90) of the reward's 2.00 s"
    )


def test_calls_are_clocked_and_pass_through():
    def score(images, prompts):
        return rewards(sum=images.sum((1, 2, 3)))

    clocked, images = pace.Clocked(score), torch.rand(3, 3, 2, 2)
    assert torch.equal(clocked(images, [Prompt(text="")] * 3).total, images.sum((1, 2, 3)))
    assert len(clocked.seconds) == 1
    assert clocked.seconds[0] > 0


@pytest.mark.parametrize(
    ("name", "side"), [("ocr", 64), ("mixture", 64), ("geneval_coco", 96), ("hpsv2", 96)]
)
def test_what_is_scored_suits_the_reward(choice, name, side):
    reward = choice("reward", name)
    prompts, images = pace.material(reward, 10, side)
    assert all(map(reward.accepts, prompts))
    assert [prompt.text for prompt in prompts] == [prompts[0].text] * pace.GROUP + [
        prompts[-1].text
    ] * 2
    assert images.shape == (10, 3, side, side)
    assert (images.min() >= 0) & (images.max() <= 1)


def test_every_reward_that_is_timed_is_a_choice():
    choices = {path.stem for path in Path(cli.CONF, "reward").glob("*.yaml")}
    assert {*pace.EMBEDDED, *standins.STANDINS} <= choices


def test_random_weights_are_read_as_published_ones(monkeypatch, tmp_path):
    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    monkeypatch.setattr(image_reward, "VISION", {**image_reward.VISION, **small, "image_size": 32})
    monkeypatch.setattr(image_reward, "TEXT", {**image_reward.TEXT, **small})
    settings = standins.STANDINS["image_reward"](tmp_path)
    score = reading.reward(f"image_reward {settings}").load(CPU)
    assert not score(torch.rand(2, 3, 32, 32), [Prompt(text="a cat")] * 2).failed.any()


def test_random_weights_are_spread():
    state = standins.noise(
        {"a": torch.empty(300, 7000, device="meta"), "b": torch.empty((), device="meta")}
    )
    assert state["a"].shape == (300, 7000)
    assert state["b"].shape == ()
    assert state["a"].std().item() == pytest.approx(standins.SPREAD, rel=0.01)


def test_a_bad_setting_is_told_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench.py", "memory", "microbatch=7"])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "do not divide into microbatch=7" in error
    assert error.count("\n") == 1
