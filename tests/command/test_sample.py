"""Pictures by a checkpoint and its base model, and refusals of what cannot be drawn."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from refusing import check_refusal
from toy import experiment

from grpo_guard.command import sample as script
from grpo_guard.console import cli, drawing, sources
from grpo_guard.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train a run of the toy world; return its folder and its experiment."""
    folder = tmp_path_factory.mktemp("run")
    exp = experiment(folder)
    every = dataclasses.replace(exp.checkpoint, export_every=1, best="eval/gold/grey")
    exp = dataclasses.replace(exp, checkpoint=every)
    train(exp, {})
    return folder, exp


@pytest.fixture
def draw(run, monkeypatch):
    folder, exp = run
    monkeypatch.setattr(cli, "load", lambda _: exp)
    return lambda *arguments: script.main([str(folder), "--steps", "3", *arguments])


def pictures(folder, name):
    return [np.asarray(Image.open(path)) for path in sorted((folder / name).glob("*.png"))]


def test_the_last_checkpoint_and_the_base_are_drawn(draw, tmp_path, capsys):
    draw("--prompt", "a", "--prompt", "b", "--each", "2", "--out", str(tmp_path))
    assert capsys.readouterr().out.strip() == str(tmp_path / "grid.png")
    base, tuned = (pictures(tmp_path, name) for name in ("base", "tuned"))
    assert len(base) == len(tuned) == 4
    assert not np.array_equal(base[0], base[1])
    assert any(not np.array_equal(a, b) for a, b in zip(base, tuned, strict=True))
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 100
    assert (tmp_path / "prompts.jsonl").read_text() == '{"prompt": "a"}\n{"prompt": "b"}\n'


def test_prompts_in_genevals_format_keep_their_demands(draw, tmp_path):
    """The file beside the pictures is what evaluate.py and calibrate_geneval.py read."""
    line = '{"tag": "counting", "include": [{"class": "cup", "count": 2}], "prompt": "two cups"}'
    (tmp_path / "prompts").write_text(line + "\n", encoding="utf-8")
    draw("--prompts", str(tmp_path / "prompts"), "--out", str(tmp_path / "out"))
    kept = sources.read_prompt_file(tmp_path / "out" / "prompts.jsonl")
    assert [(prompt.text, prompt.tag) for prompt in kept] == [("two cups", "counting")]
    assert [(clause.name, clause.count) for clause in kept[0].include] == [("cup", 2)]


def test_a_prompt_that_is_no_unicode_is_refused(draw, tmp_path, capsys):
    """A shell hands over bytes that are not UTF-8 as halves of surrogate pairs."""
    arguments = ["--prompt", "caf\udce9", "--out", str(tmp_path)]
    check_refusal(lambda words: draw(*words), arguments, "--prompt='caf\\udce9' holds half", capsys)


def test_a_prompt_may_hold_dollars(draw, tmp_path):
    draw("--prompt", r"a $\bad{$ sign", "--out", str(tmp_path))
    assert (tmp_path / "grid.png").is_file()


def test_noise_belongs_to_the_row(draw, tmp_path):
    draw("--prompt", "a", "--out", str(tmp_path / "one"))
    draw("--prompt", "a", "--prompt", "b", "--out", str(tmp_path / "two"))
    assert np.array_equal(
        pictures(tmp_path / "one", "base")[0], pictures(tmp_path / "two", "base")[0]
    )
    draw("--prompt", "a", "--seed", "1", "--out", str(tmp_path / "other"))
    assert not np.array_equal(
        pictures(tmp_path / "one", "base")[0], pictures(tmp_path / "other", "base")[0]
    )


def test_the_runs_own_captions_are_the_default(draw, run, tmp_path):
    draw("--out", str(tmp_path))
    assert len(pictures(tmp_path, "tuned")) == len(
        (run[0] / "samples" / "captions.txt").read_text().splitlines()
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--checkpoint", "9"], "--checkpoint=9 is not there; choose from 1, 2, 3, best, last"),
        (["--checkpoint", "newest"], "--checkpoint=newest is not there; choose from 1,"),
        (["--each", "0"], "--each=0 is not positive"),
        (["--steps", "0"], "--steps=0 is not positive"),
        (["--device", "gpu"], "--device=gpu is not here; choose from auto, cpu"),
        (["--prompts", "nowhere.txt"], "--prompts=nowhere.txt cannot be read"),
    ],
)
def test_refusals(arguments, line, draw, capsys):
    check_refusal(lambda words: draw(*words), arguments, line, capsys)


def test_a_folder_that_cannot_be_written_is_refused(draw, tmp_path, capsys, monkeypatch):
    """It is refused before anything is drawn, which may take hours."""
    monkeypatch.setattr(drawing, "draw_base_and_tuned", lambda *_: pytest.fail("was drawn"))
    (tmp_path / "file").write_text("")
    arguments = ["--prompt", "a", "--out", str(tmp_path / "file")]
    check_refusal(
        lambda words: draw(*words),
        arguments,
        f"--out={tmp_path}/file cannot be written (File exists)",
        capsys,
    )


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    (tmp_path / "checkpoints" / "000001").mkdir(parents=True)
    check_refusal(script.main, [str(tmp_path)], "config.yaml cannot be read", capsys)
