"""Two detectors on the same pictures: agreement per tag, the output file, and refusals."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import refusing
from PIL import Image

from grpo_guard.command import calibrate as script
from grpo_guard.command import calibrating
from grpo_guard.world import captions, render

check_refusal = functools.partial(refusing.check_refusal, script.main)

LINES = {
    "one right": '{"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}],'
    ' "prompt": "1"}',
    "one wrong": '{"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "blue"}],'
    ' "prompt": "2"}',
    "two": '{"tag": "counting", "include": [{"class": "triangle", "count": 2}], "prompt": "3"}',
}
DRAWN = ["a red circle", "a red circle", "two green triangles", "two green triangles"]


@pytest.fixture
def scene(tmp_path):
    """Render captions of the world into a folder, and write a file of prompts."""

    def make(drawn, lines):
        world = {
            p.text: p
            for heldout in (False, True)
            for p in captions.all_prompts(("shapes",), heldout=heldout)
        }
        pictures = render.render([world[text] for text in drawn], np.random.default_rng(0))
        for row, picture in enumerate(pictures):
            Image.fromarray(picture).save(tmp_path / f"{row:03d}.png")
        file = tmp_path / "prompts"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(tmp_path), str(file)

    return make


def rows(printed):
    """Return the rows of a printed table by their first cell."""
    cells = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in printed.splitlines()
        if "│" in line
    ]
    return {first: rest for first, *rest in cells}


def test_agreement_per_tag(scene, capsys, tmp_path):
    """With counting=0.999 no object counts in that tag; other tags do not change."""
    arguments = scene(DRAWN[:3], [LINES[key] for key in ("one right", "one wrong", "two")])
    script.main([*arguments, "geneval", "geneval counting=0.999", "--out", str(tmp_path / "seen")])
    table = rows(capsys.readouterr().out)
    assert table["colors"] == ["2", "0.75 0.75 1.00", "0.50 0.50 1.00", "0.50 0.50 1.00"]
    assert table["counting"] == ["1", "1.00 0.00 0.00", "1.00 0.00 0.00", "1.00 0.00 0.00"]
    assert table["all"] == ["3", "0.83 0.50 0.67", "0.67 0.33 0.67", "0.67 0.33 0.67"]
    kept = [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]
    assert [Path(picture["picture"]).name for picture in kept] == ["000.png", "001.png", "002.png"]
    assert kept[1]["B"]["demands"] == [
        "1.00 1 circle: saw 1",
        "0.00 1 blue circle: saw 1 red, 1 missing",
    ]
    assert kept[2]["prompt"] == "3"
    assert kept[2]["A"] == {
        "reward": "geneval",
        "graded": 1,
        "accuracy": 1,
        "strict": 1,
        "demands": ["1.00 2 triangle: saw 2"],
    }
    assert kept[2]["B"]["demands"] == ["0.00 2 triangle: saw 0, 2 missing"]


def test_captions_of_the_world_and_several_pictures_of_each(scene, capsys):
    script.main([*scene(DRAWN, ["a red circle", "two green triangles"]), "geneval", "geneval"])
    assert rows(capsys.readouterr().out)["all"] == ["4", *["1.00 1.00 1.00"] * 3]


def test_prompts_that_one_of_them_cannot_judge_are_left_out(scene, capsys):
    script.main([*scene(DRAWN[:2], ["a red circle", 'the word "stop"']), "geneval", "geneval"])
    assert rows(capsys.readouterr().out)["all"][0] == "1"


GOOD = ["a red circle", "a red circle"]
BAD = {
    "no such choice": (GOOD, ["geneval", "genevil"], "genevil"),
    "no such setting": (GOOD, ["geneval", "geneval sharp=1"], "sharp"),
    "a bad setting": (GOOD, ["geneval", "geneval counting=2"], "counting=2 is outside [0, 1)"),
    "not a detector's": (
        GOOD,
        ["geneval", "ocr"],
        "REWARD=ocr has no detector; give geneval",
    ),
    "nothing": (GOOD, ["geneval", ""], "reward/ is no choice"),
    "no JSON": (
        ["a red circle", "a blue cat"],
        ["geneval"] * 2,
        "line 2 is no caption of the synthetic world, and the line is not JSON",
    ),
    "no prompt": ([""], ["geneval"] * 2, "holds no prompt; give one per line"),
    "too many": (
        [*GOOD, "a red circle"],
        ["geneval"] * 2,
        "holds 2 pictures for 3 prompts; give the same number",
    ),
    "none to judge": (
        ['the word "stop"'],
        ["geneval"] * 2,
        "holds no prompt that geneval and geneval can judge",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_one_line(scene, capsys, case):
    lines, rewards, words = BAD[case]
    check_refusal([*scene(DRAWN[:2], lines), *rewards], words, capsys)


@pytest.mark.parametrize("place", ["none/x", "pictures"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    scene, capsys, tmp_path, monkeypatch, place
):
    (tmp_path / "pictures").mkdir()
    monkeypatch.setattr(calibrating, "measure_picture", lambda *_: pytest.fail("was measured"))
    arguments = [*scene(DRAWN[:2], GOOD), "geneval", "geneval", "--out", f"{tmp_path}/{place}"]
    check_refusal(arguments, f"--out={tmp_path}/{place} cannot be written", capsys)


def test_files_that_cannot_be_read_are_one_line(scene, capsys, tmp_path):
    folder, file = scene(DRAWN[:2], GOOD)
    check_refusal(
        [f"{tmp_path}/none", file, "geneval", "geneval"], "none holds no .png, .jpg", capsys
    )
    check_refusal([folder, f"{tmp_path}/none", "geneval", "geneval"], "none cannot be read", capsys)
    check_refusal(
        [folder, file, "geneval", "geneval", "--out", f"{tmp_path}/none/x"],
        "/none/x cannot be written",
        capsys,
    )
    check_refusal(
        [folder, file, "geneval", "geneval", "--device", "gpu"],
        "--device=gpu is not here; choose from",
        capsys,
    )
    (tmp_path / "001.png").write_bytes(b"GIF")
    check_refusal([folder, file, "geneval", "geneval"], "001.png cannot be read", capsys)
