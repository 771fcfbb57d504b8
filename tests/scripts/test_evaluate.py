"""Scores of a run and of folders of pictures against computations by hand; and what cannot be judged."""

import functools
import json
import math
import shutil
import statistics

import numpy as np
import pytest
import refusing
import torch
from PIL import Image
from toy import Model, experiment

import evaluate as script
from grpo_guard import rng
from grpo_guard.world import captions, render
from lib import cli

refused = functools.partial(refusing.check_refusal, script.main)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder of the toy world with two checkpoints, and the experiment that its config.yaml would give."""
    exp = experiment(tmp_path)
    for seed, name in enumerate(("000002", "best")):
        folder = tmp_path / "run" / "checkpoints" / name
        folder.mkdir(parents=True)
        torch.manual_seed(seed)
        model = Model()
        model.save(folder, model.policy.state_dict())
    monkeypatch.setattr(cli, "load", lambda _: exp)
    return tmp_path / "run"


@pytest.fixture
def judge(run):
    """Evaluate the run; the numbers that are kept."""

    def evaluate(*arguments, out="out"):
        script.main([str(run), "--steps", "3", "--out", str(run / out), *arguments])
        return json.loads((run / out / "evaluation.json").read_text())

    return evaluate


@pytest.fixture
def prompts(tmp_path):
    """A file of prompts."""

    def write(*lines):
        (tmp_path / "prompts").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(tmp_path / "prompts")

    return write


def of(told, model, name):
    """The score of every picture of a model."""
    return [picture[model]["scores"][name] for picture in told["pictures"]]


def brightness(folder, told, model):
    """The mean of every picture that was written."""
    return [
        np.asarray(Image.open(folder / p[model]["file"])).mean() / 255 for p in told["pictures"]
    ]


def test_base_beside_tuned(judge, run, prompts, capsys):
    """The run's reward wants 0.8 of brightness and its gold 0.2; a picture on disk is right to half a level."""
    told = judge("--prompts", prompts(*"abcdef"))
    pictures = {model: brightness(run / "out", told, model) for model in ("base", "tuned")}
    for model, seen in pictures.items():
        for name, target in (("proxy/grey", 0.8), ("grey/grey", 0.2)):
            assert of(told, model, name) == pytest.approx(
                [-((x - target) ** 2) for x in seen], abs=5e-3
            )
    proxy, gold = told["scores"]
    assert (proxy["reward"], proxy["score"], proxy["n"], proxy["failed"]) == ("proxy", "grey", 6, 0)
    assert gold["reward"] == "grey"
    base, tuned = (of(told, model, "proxy/grey") for model in ("base", "tuned"))
    gains = [b - a for a, b in zip(base, tuned, strict=True)]
    assert len(set(gains)) == 6
    for name, values in {"base": base, "tuned": tuned, "difference": gains}.items():
        assert proxy[name]["mean"] == pytest.approx(statistics.mean(values))
        assert proxy[name]["standard_error"] == pytest.approx(
            statistics.stdev(values) / math.sqrt(6)
        )
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == str(run / "out" / "index.html")
    assert "difference" in out


def test_noise_belongs_to_the_prompts_row(judge, run):
    """Fewer prompts are the first of more, drawn and judged alike; another seed is another evaluation."""
    four, two = judge("--count", "4", out="four"), judge("--count", "2", out="two")
    assert two["pictures"] == four["pictures"][:2]
    assert {picture["prompt"] for picture in four["pictures"]} == {"g", "h"}
    assert len({picture["base"]["scores"]["proxy/grey"] for picture in four["pictures"]}) == 4
    other = judge("--count", "2", "--seed", "1", out="other")
    assert of(other, "base", "proxy/grey") != of(two, "base", "proxy/grey")


def test_a_checkpoint_that_is_the_base_gains_nothing(judge, run):
    """Both draw from the same noise."""
    (run / "checkpoints" / "000000").mkdir()
    torch.manual_seed(rng.key(0, "initialisation"))
    base = Model()
    base.save(run / "checkpoints" / "000000", base.policy.state_dict())
    told = judge("--count", "3", "--checkpoint", "0")
    assert of(told, "base", "proxy/grey") == of(told, "tuned", "proxy/grey")
    assert told["scores"][0]["difference"] == {"mean": 0, "standard_error": 0}


def test_checkpoints_are_told_apart(judge):
    last, second, best = (
        judge("--count", "2", "--checkpoint", name) for name in ("last", "2", "best")
    )
    assert last == second
    assert (last["checkpoint"], best["checkpoint"]) == ("iteration 2", "best")
    assert of(best, "base", "proxy/grey") == of(last, "base", "proxy/grey")
    assert of(best, "tuned", "proxy/grey") != of(last, "tuned", "proxy/grey")


def test_several_pictures_of_each_prompt(judge, prompts):
    told = judge("--prompts", prompts("a", "b", "c"), "--each", "2", "--count", "2")
    assert [picture["prompt"] for picture in told["pictures"]] == ["a", "a", "b", "b"]
    assert len(set(of(told, "tuned", "proxy/grey"))) == 4


@pytest.fixture
def folder(tmp_path):
    """Pictures of these captions of the world, in order."""
    drawn = ["a blue square", "a red circle", "a red circle", 'the word "stop"']
    world = {p.text: p for heldout in (False, True) for p in captions.all_prompts(heldout=heldout)}
    (tmp_path / "drawn").mkdir()
    for row, picture in enumerate(
        render.render([world[text] for text in drawn], np.random.default_rng(0))
    ):
        Image.fromarray(picture).save(tmp_path / "drawn" / f"{row:03d}.png")
    return tmp_path / "drawn"


ASKED = [
    "whatever <you> like",
    "a red circle",
    '{"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "blue"}], "prompt": "a blue circle"}',
    'the word "stop"',
]


def test_a_folder_is_judged_by_each_reward_where_it_can(folder, prompts):
    """The third picture shows another colour than asked; only three prompts say what must be there, two by shapes."""
    script.main(
        [
            str(folder),
            "--prompts",
            prompts(*ASKED),
            "--rewards",
            "world,geneval strict=true, statistics",
        ]
    )
    told = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    found = {
        (row["reward"], row["score"]): (row["n"], row["pictures"]["mean"]) for row in told["scores"]
    }
    assert found["world", "exact"] == (3, pytest.approx(2 / 3))
    assert found["geneval strict=true", "geneval"] == (2, pytest.approx(1 / 2))
    assert found["statistics", "dark_fraction"][0] == 4
    assert of(told, "pictures", "world/exact") == [None, 1, 0, 1]
    assert of(told, "pictures", "geneval strict=true/geneval_accuracy") == [None, 1, 0, None]
    images = [
        np.asarray(Image.open(picture["pictures"]["file"])) / 255 for picture in told["pictures"]
    ]
    saturation = [(x.max(2) - x.min(2)).mean() for x in images]
    assert of(told, "pictures", "statistics/saturation") == pytest.approx(saturation, abs=1e-3)


def test_what_was_seen_is_told_of_every_picture(folder, prompts):
    """The third picture shows a red circle where a blue one is asked for."""
    script.main([str(folder), "--prompts", prompts(*ASKED), "--rewards", "world,geneval"])
    told = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    notes = [picture["pictures"]["notes"] for picture in told["pictures"]]
    assert notes == [
        {},
        {"geneval": ["1.00 1 circle: saw 1", "1.00 1 red circle: saw 1 red"]},
        {"geneval": ["1.00 1 circle: saw 1", "0.00 1 blue circle: saw 1 red, 1 missing"]},
        {},
    ]
    page = (folder / "evaluation" / "index.html").read_text(encoding="utf-8")
    cell = "geneval: 1.00 1 circle: saw 1<br>geneval: 0.00 1 blue circle: saw 1 red, 1 missing"
    assert f'<th scope="row">a blue circle</th><td>{cell}</td>' in page
    assert '<th scope="row">whatever &lt;you&gt; like</th>' not in page
    assert page.count("<g><title>geneval: 1.00 1 circle: saw 1\ngeneval: ") == 2


def test_the_page_needs_nothing_else(folder, prompts, capsys):
    script.main(
        [
            str(folder),
            "--prompts",
            prompts(*ASKED),
            "--rewards",
            "world",
            "--out",
            str(folder / "a" / "b"),
        ]
    )
    page = (folder / "a" / "b" / "index.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.count("data:image/png;base64") == 4
    assert "src=" not in page
    assert '<th scope="row">world</th><td>exact</td><td>3</td><td>0.67 ± 0.33</td>' in page
    assert "0.67 ± 0.33" in capsys.readouterr().out


def test_several_pictures_of_one_prompt_have_a_diversity(folder, prompts):
    """None where they are one picture twice."""
    shutil.copy(folder / "001.png", folder / "000.png")
    script.main([str(folder), "--prompts", prompts("one", "two"), "--rewards", "diversity"])
    told = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    *alike, unlike, other = of(told, "pictures", "diversity/diversity")
    assert alike == pytest.approx([0, 0], abs=1e-5)
    assert unlike == pytest.approx(other)
    assert unlike > 0.01


BAD_RUNS = {
    "no such checkpoint": (
        ["--checkpoint", "9"],
        "--checkpoint=9 is not there; choose from 2, best, last",
    ),
    "no steps": (["--steps", "0"], "--steps=0 is not positive"),
    "no prompts": (["--count", "0"], "--count=0 is not positive"),
    "no file": (["--prompts", "nowhere.txt"], "--prompts=nowhere.txt cannot be read"),
    "no such device": (
        ["--device", "cuda:99"],
        "--device=cuda:99 is not here; choose from auto, cpu",
    ),
    "no such reward": (["--rewards", "pickscor"], "Could not find 'reward/pickscor'"),
    "a bad setting": (["--rewards", "geneval counting=2"], "counting=2 is outside [0, 1)"),
    "a reward that suits no prompt": (
        ["--rewards", "world"],
        "none of the prompts suits world; give others",
    ),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_what_cannot_be_used_of_a_run(case, run, capsys):
    arguments, words = BAD_RUNS[case]
    refused([str(run), *arguments], words, capsys)


def test_what_cannot_be_used_of_a_folder(folder, prompts, capsys):
    file, given = prompts(*ASKED), ["--rewards", "statistics"]
    refused([str(folder), *given], "--prompts=FILE must be given", capsys)
    refused([str(folder), "--prompts", file], "--rewards=NAME,... must be given; such as", capsys)
    refused(
        [str(folder), "--prompts", file, *given, "--steps", "4", "--count", "0"],
        "--steps, --count can only",
        capsys,
    )
    refused(
        [str(folder / "none"), *given, "--prompts", file], "none is no folder; give a run's", capsys
    )
    refused(
        [str(folder), *given, "--prompts", prompts("a", "b", "c")],
        "4 pictures for 3 prompts",
        capsys,
    )
    refused(
        [str(folder), *given, "--prompts", prompts("a", "{")],
        "line 2 is no caption of the synthetic world, and no JSON",
        capsys,
    )
    (folder / "file").write_text("")
    file = prompts(*ASKED)
    refused(
        [str(folder), "--prompts", file, *given, "--out", str(folder / "file" / "x")],
        "cannot be written",
        capsys,
    )
    Image.new("RGB", (9, 9)).save(folder / "003.png")
    refused([str(folder), "--prompts", file, *given], "are of 2 sizes; make them of one", capsys)
