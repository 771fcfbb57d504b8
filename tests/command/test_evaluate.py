"""Scores of runs and of folders of pictures against computations by hand, and refusals."""

import functools
import io
import json
import math
import shutil
import statistics

import numpy as np
import pytest
import refusing
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from toy import Model, experiment

from grpo_guard import rng
from grpo_guard.command import evaluate as script
from grpo_guard.command import evaluating
from grpo_guard.console import cli, reading
from grpo_guard.reward import make_rewards
from grpo_guard.schema import ConfigError
from grpo_guard.world import captions, render

check_refusal = functools.partial(refusing.check_refusal, script.main)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Write a run folder of the toy world with two checkpoints, and load its experiment."""
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
    """Return a function that evaluates the run and returns evaluation.json."""

    def evaluate(*arguments, out="out"):
        script.main([str(run), "--steps", "3", "--out", str(run / out), *arguments])
        return json.loads((run / out / "evaluation.json").read_text())

    return evaluate


@pytest.fixture
def prompts(tmp_path):
    """Return a function that writes a file of prompts and returns its path."""

    def write(*lines):
        (tmp_path / "prompts").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(tmp_path / "prompts")

    return write


def scores_of(report, model, name):
    """Return the score of every picture of a model."""
    return [picture[model]["scores"][name] for picture in report["pictures"]]


def brightness(folder, report, model):
    """Return the mean of every picture that was written."""
    return [
        np.asarray(Image.open(folder / p[model]["file"])).mean() / 255 for p in report["pictures"]
    ]


def test_base_and_tuned_are_scored(judge, run, prompts, capsys):
    """The proxy wants a brightness of 0.8 and the gold 0.2; files are exact to half a level."""
    report = judge("--prompts", prompts(*"abcdef"))
    pictures = {model: brightness(run / "out", report, model) for model in ("base", "tuned")}
    for model, means in pictures.items():
        for name, target in (("proxy/grey", 0.8), ("grey/grey", 0.2)):
            assert scores_of(report, model, name) == pytest.approx(
                [-((x - target) ** 2) for x in means], abs=5e-3
            )
    proxy, gold = report["scores"]
    assert (proxy["reward"], proxy["score"], proxy["n"], proxy["failed"]) == ("proxy", "grey", 6, 0)
    assert gold["reward"] == "grey"
    base, tuned = (scores_of(report, model, "proxy/grey") for model in ("base", "tuned"))
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


def test_what_was_drawn_can_be_evaluated_again(judge, run, prompts):
    """The folder of pictures and prompts.jsonl give the same demands and nearly the same scores."""
    drawn = judge("--prompts", prompts(*LINES), "--each", "2", "--rewards", "world,geneval")
    file = run / "out" / "prompts.jsonl"
    assert [json.loads(line)["prompt"] for line in file.read_text().splitlines()] == [
        "whatever <you> like", "a red circle", "a blue circle", 'the word "stop"',
    ]  # fmt: skip
    folder = run / "out" / "tuned"
    script.main([str(folder), "--prompts", str(file), "--rewards", "world,geneval"])
    again = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    for name in ("world/exact", "geneval/geneval_accuracy"):
        assert scores_of(again, "pictures", name) == scores_of(drawn, "tuned", name)


def test_noise_belongs_to_the_prompts_row(judge, run):
    """Fewer prompts are the first of more and score the same; another seed changes all scores."""
    four, two = judge("--count", "4", out="four"), judge("--count", "2", out="two")
    assert two["pictures"] == four["pictures"][:2]
    assert {picture["prompt"] for picture in four["pictures"]} == {"g", "h"}
    assert len({picture["base"]["scores"]["proxy/grey"] for picture in four["pictures"]}) == 4
    other = judge("--count", "2", "--seed", "1", out="other")
    assert scores_of(other, "base", "proxy/grey") != scores_of(two, "base", "proxy/grey")


def test_a_checkpoint_equal_to_the_base_gains_nothing(judge, run):
    """Both draw from the same noise."""
    (run / "checkpoints" / "000000").mkdir()
    torch.manual_seed(rng.key(0, "initialisation"))
    base = Model()
    base.save(run / "checkpoints" / "000000", base.policy.state_dict())
    report = judge("--count", "3", "--checkpoint", "0")
    assert scores_of(report, "base", "proxy/grey") == scores_of(report, "tuned", "proxy/grey")
    assert report["scores"][0]["difference"] == {"mean": 0, "standard_error": 0}


def test_each_checkpoint_has_its_own_scores(judge):
    last, second, best = (
        judge("--count", "2", "--checkpoint", name) for name in ("last", "2", "best")
    )
    assert last == second
    assert (last["checkpoint"], best["checkpoint"]) == ("iteration 2", "best")
    assert scores_of(best, "base", "proxy/grey") == scores_of(last, "base", "proxy/grey")
    assert scores_of(best, "tuned", "proxy/grey") != scores_of(last, "tuned", "proxy/grey")


def test_several_pictures_of_each_prompt(judge, prompts):
    report = judge("--prompts", prompts("a", "b", "c"), "--each", "2", "--count", "2")
    assert [picture["prompt"] for picture in report["pictures"]] == ["a", "a", "b", "b"]
    assert len(set(scores_of(report, "tuned", "proxy/grey"))) == 4


@pytest.fixture
def folder(tmp_path):
    """Render pictures of captions of the synthetic world into a folder."""
    drawn = ["a blue square", "a red circle", "a red circle", 'the word "stop"']
    world = {p.text: p for heldout in (False, True) for p in captions.all_prompts(heldout=heldout)}
    (tmp_path / "drawn").mkdir()
    for row, picture in enumerate(
        render.render([world[text] for text in drawn], np.random.default_rng(0))
    ):
        Image.fromarray(picture).save(tmp_path / "drawn" / f"{row:03d}.png")
    return tmp_path / "drawn"


LINES = [
    "whatever <you> like",
    "a red circle",
    '{"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "blue"}],'
    ' "prompt": "a blue circle"}',
    'the word "stop"',
]


def test_each_reward_scores_the_prompts_that_it_accepts(folder, prompts):
    """The third picture has the wrong colour; three prompts have demands, two of them shapes."""
    script.main(
        [
            str(folder),
            "--prompts",
            prompts(*LINES),
            "--rewards",
            "world,geneval measure=strict, statistics",
        ]
    )
    report = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    means = {
        (row["reward"], row["score"]): (row["n"], row["pictures"]["mean"])
        for row in report["scores"]
    }
    assert means["world", "exact"] == (3, pytest.approx(2 / 3))
    assert means["geneval measure=strict", "geneval"] == (2, pytest.approx(1 / 2))
    assert means["statistics", "dark_fraction"][0] == 4
    assert scores_of(report, "pictures", "world/exact") == [None, 1, 0, 1]
    assert scores_of(report, "pictures", "geneval measure=strict/geneval_accuracy") == [
        None,
        1,
        0,
        None,
    ]
    images = [
        np.asarray(Image.open(picture["pictures"]["file"])) / 255 for picture in report["pictures"]
    ]
    saturation = [(x.max(2) - x.min(2)).mean() for x in images]
    assert scores_of(report, "pictures", "statistics/saturation") == pytest.approx(
        saturation, abs=1e-3
    )


def test_the_notes_of_every_picture_are_kept(folder, prompts):
    """The third picture shows a red circle, but its prompt is a blue one."""
    script.main([str(folder), "--prompts", prompts(*LINES), "--rewards", "world,geneval"])
    report = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    notes = [picture["pictures"]["notes"] for picture in report["pictures"]]
    assert notes == [
        {},
        {"geneval": ["1.00 1 circle: saw 1", "1.00 1 red circle: saw 1 red"]},
        {
            "world": ["no blue circle"],
            "geneval": ["1.00 1 circle: saw 1", "0.00 1 blue circle: saw 1 red, 1 missing"],
        },
        {},
    ]
    page = (folder / "evaluation" / "index.html").read_text(encoding="utf-8")
    cell = (
        "world: no blue circle<br>geneval: 1.00 1 circle: saw 1<br>"
        "geneval: 0.00 1 blue circle: saw 1 red, 1 missing"
    )
    assert f'<th scope="row">a blue circle</th><td>{cell}</td>' in page
    assert '<th scope="row">whatever &lt;you&gt; like</th>' not in page
    assert page.count("<g><title>geneval: 1.00 1 circle: saw 1\ngeneval: ") == 1
    assert page.count("<g><title>world: no blue circle\ngeneval: 1.00 1 circle: saw 1\n") == 1


def test_the_page_needs_no_other_file(folder, prompts, capsys):
    script.main(
        [
            str(folder),
            "--prompts",
            prompts(*LINES),
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
    assert '<th scope="row">world</th><td>exact</td><td>3</td><td>0.67\xa0±\xa00.33</td>' in page
    assert "0.67 ± 0.33" in capsys.readouterr().out


def test_several_pictures_of_one_prompt_have_a_diversity(folder, prompts):
    """It is 0 for copies of one picture."""
    shutil.copy(folder / "001.png", folder / "000.png")
    script.main([str(folder), "--prompts", prompts("one", "two"), "--rewards", "diversity"])
    report = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    *alike, unlike, other = scores_of(report, "pictures", "diversity/diversity")
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
    "no such reward": (
        ["--rewards", "pickscor"],
        "reward=pickscor is no choice; did you mean pickscore?",
    ),
    "a comma without a name": (
        ["--rewards", "pickscore,"],
        "--rewards=pickscore, lacks a name at a comma; such as pickscore,statistics",
    ),
    "a bad setting": (["--rewards", "geneval counting=2"], "counting=2 is outside [0, 1)"),
    "a reward that suits no prompt": (
        ["--rewards", "world"],
        "none of the prompts suits world; give other prompts",
    ),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_mistakes_about_a_run_are_refused(case, run, capsys):
    arguments, words = BAD_RUNS[case]
    check_refusal([str(run), *arguments], words, capsys)


def test_mistakes_about_a_folder_are_refused(folder, prompts, capsys):
    file = prompts(*LINES)
    rewards = ["--rewards", "statistics"]
    check_refusal([str(folder), *rewards], "--prompts=FILE is missing; give the", capsys)
    check_refusal(
        [str(folder), "--prompts", file], "--rewards=NAME,... must be given; such as", capsys
    )
    check_refusal(
        [str(folder), "--prompts", file, *rewards, "--steps", "4", "--count", "0"],
        f"--steps, --count can only be used with a run folder, and {folder} is none; leave",
        capsys,
    )
    check_refusal(
        [str(folder / "none"), *rewards, "--prompts", file],
        "none is no folder; give a run folder",
        capsys,
    )
    check_refusal(
        [str(folder), *rewards, "--prompts", prompts("a", "b", "c")],
        "4 pictures for 3 prompts",
        capsys,
    )
    check_refusal(
        [str(folder), *rewards, "--prompts", prompts("a", "{")],
        "line 2 is no caption of the synthetic world, and the line is not JSON",
        capsys,
    )
    (folder / "file").write_text("")
    file = prompts(*LINES)
    check_refusal(
        [str(folder), "--prompts", file, *rewards, "--out", str(folder / "file" / "x")],
        "cannot be written",
        capsys,
    )
    Image.new("RGB", (9, 9)).save(folder / "003.png")
    check_refusal(
        [str(folder), "--prompts", file, *rewards], "has pictures of 2 sizes; resize them", capsys
    )


@pytest.fixture
def picture():
    """Make a colour picture whose corners differ, 8 bits."""
    levels = np.arange(4 * 6 * 3).reshape(4, 6, 3) * 3
    return levels.astype(np.uint8)


def open_saved(image, path, **options):
    """Save a picture and return what the script reads of it, as H W 3 levels from 0 to 255."""
    image.save(path, **options)
    return reading.open_image(path)[0].permute(1, 2, 0).mul(255).numpy()


def test_16_bit_pictures_are_as_bright_as_with_8(picture, tmp_path):
    grey = picture[..., 0]
    twin = open_saved(Image.fromarray(grey), tmp_path / "8.png")
    deep = open_saved(Image.fromarray(grey.astype(np.uint16) * 257), tmp_path / "16.png")
    with Image.open(tmp_path / "16.png") as image:
        assert image.mode == "I;16"
    np.testing.assert_allclose(deep, twin, atol=1e-3)
    np.testing.assert_allclose(twin[..., 2], grey, atol=1e-3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_exif_says(picture, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turns = {1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud}
    turns |= {5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1)}
    turns |= {7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: np.rot90}
    seen = open_saved(Image.fromarray(picture), tmp_path / "turned.png", exif=exif)
    np.testing.assert_allclose(seen, turns[orientation](picture), atol=1e-3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pictures_lie_on_white(picture, tmp_path, mode):
    """What is transparent is white whatever colour it has; the rest stays."""
    grey = picture[..., 0]
    alpha = np.full_like(grey, 255)
    alpha[0, 0] = 0
    options = {}
    if mode == "RGBA":
        image = Image.fromarray(np.dstack([picture, alpha]))
    elif mode == "LA":
        image = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    elif mode == "P":
        image = Image.fromarray(grey).convert("P")
        options = {"transparency": 0}
    else:
        image = Image.fromarray(picture)
        options = {"transparency": tuple(picture[0, 0].tolist())}
    seen = open_saved(image, tmp_path / "hole.png", **options)
    colors = np.dstack([grey] * 3) if mode in ("LA", "P") else picture
    assert seen[0, 0].tolist() == [255, 255, 255]
    np.testing.assert_allclose(seen[1:], colors[1:], atol=1e-3)


def test_half_transparent_is_half_white(tmp_path):
    image = Image.new("RGBA", (2, 2), (0, 0, 0, 102))
    assert open_saved(image, tmp_path / "haze.webp", lossless=True).mean() == pytest.approx(153)


def test_numbers_without_a_white_are_refused(tmp_path):
    Image.new("F", (2, 2)).save(tmp_path / "a.tiff")
    with pytest.raises(ConfigError, match=r"a.tiff cannot be read \(mode F has no white; save it"):
        reading.open_image(tmp_path / "a.tiff")


def encode(kind, **options):
    """Return a picture as the bytes of a file."""
    file = io.BytesIO()
    levels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(levels).save(file, kind, **options)
    return file.getvalue()


WHOLE = [encode("png"), encode("jpeg"), encode("webp"), encode("gif"), encode("tiff")]


@settings(max_examples=200)
@given(
    whole=st.sampled_from(WHOLE),
    length=st.integers(0, 3000),
    place=st.integers(0, 2999),
    wrong=st.binary(max_size=6),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_pictures_are_read_or_refused_in_one_line(
    tmp_path_factory, whole, length, place, wrong
):
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    content = whole[:length]
    path.write_bytes(content[:place] + wrong + content[place + len(wrong) :])
    refusal = ""
    try:
        assert reading.open_image(path).isfinite().all()
    except ConfigError as error:
        refusal = str(error)
    assert "\n" not in refusal


def test_a_picture_that_is_cut_off_is_refused(folder, prompts, capsys):
    file = folder / "001.png"
    file.write_bytes(file.read_bytes()[:-40])
    arguments = [str(folder), "--prompts", prompts(*LINES), "--rewards", "statistics"]
    check_refusal(arguments, "001.png cannot be read", capsys)


def test_json_with_a_prompt_is_a_caption_too(folder, prompts):
    """The world knows what a caption demands, also in a line of JSON."""
    lines = [LINES[0], '{"prompt": "a red circle"}', LINES[2], '{"prompt": "the word \\"stop\\""}']
    script.main([str(folder), "--prompts", prompts(*lines), "--rewards", "world"])
    report = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    assert scores_of(report, "pictures", "world/exact") == [None, 1, 0, 1]


def test_a_table_of_prompts_is_refused(folder, prompts, capsys):
    arguments = [str(folder), "--rewards", "statistics", "--prompts"]
    check_refusal([*arguments, prompts("caption,id", "a,1")], "is a table (line 1", capsys)


def test_a_reward_that_fails_is_one_line(folder, prompts, capsys, monkeypatch):
    class Leaving:
        compares = False
        weight_bytes = 0

        def accepts(self, prompt):
            return True

        def load(self, device):
            return lambda images, prompts: make_rewards(images, grey=images.mean())

    monkeypatch.setattr(reading, "build_reward", lambda text: Leaving())
    with pytest.raises(SystemExit, match="1"):
        script.main([str(folder), "--prompts", prompts(*LINES), "--rewards", "own"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--rewards=own (" in line
    assert "the part grey has shape (); give one score per image" in line


def test_a_setting_of_a_reward_may_be_a_list():
    urls = "[http://a:1,http://b:2]"
    rewards = evaluating.build_rewards(f"remote urls={urls}, geneval measure=strict,ocr")
    assert list(rewards) == [f"remote urls={urls}", "geneval measure=strict", "ocr"]
    assert rewards[f"remote urls={urls}"].urls == ["http://a:1", "http://b:2"]


@pytest.mark.parametrize("loads", [False, True])
def test_memory_that_does_not_suffice_is_one_line(folder, prompts, capsys, monkeypatch, loads):
    def run_short(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    class Hungry:
        compares = False
        weight_bytes = 0

        def accepts(self, prompt):
            return True

        def load(self, device):
            return run_short if loads else run_short()

    monkeypatch.setattr(reading, "build_reward", lambda text: Hungry())
    with pytest.raises(SystemExit, match="1"):
        script.main([str(folder), "--prompts", prompts(*LINES), "--rewards", "own"])
    line = capsys.readouterr().err.splitlines()[-1]
    phase = "scoring" if loads else "loading a reward of --rewards"
    assert f"is out of memory in the phase {phase}: " in line
    assert "and 2.00 GiB more did not fit; choose --device=cpu" in line
