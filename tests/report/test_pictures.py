"""Pictures on the page: the same prompts side by side, with marks, and along training."""

from __future__ import annotations

import base64
import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from synthetic_runs import make_run

from grpo_guard.report import read_readable_runs, read_runs
from grpo_guard.report.arms import group_arms
from grpo_guard.report.pictures import Mark, make_films, make_pairs


def open_source(source: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))


def test_pairs_show_the_same_prompts_by_two_arms(pair: tuple[Path, Path]) -> None:
    pairs = make_pairs(group_arms(read_runs(pair))[0])
    assert [p.caption for p in pairs][:2] == ["a red square", "two blue crosses"]
    for one in pairs:
        assert [picture.label for picture in one.pictures] == ["vanilla", "guard"]
    # the first square of a grid begins at (10, 16), and is red
    red, _, blue = open_source(pairs[0].pictures[0].source).getpixel((20, 30))
    assert red > 150 > blue
    assert pairs[0].place == "seed 0, iteration 12"
    assert pairs[0].pictures[0].notes == "proxy: saw <it>\nproxy: saw more"


def test_a_single_run_is_shown_before_and_after(pair: tuple[Path, Path]) -> None:
    pairs = make_pairs(group_arms(read_runs(pair[:1]))[0])
    assert [picture.label for picture in pairs[0].pictures] == ["before training", "iteration 12"]
    assert pairs[0].place == "seed 0, iterations 0 and 12"


def test_only_pictures_of_iteration_0_are_from_before_training(pair: tuple[Path, Path]) -> None:
    [run] = read_runs(pair[:1])
    assert run.samples is not None
    later = {iteration: path for iteration, path in run.samples.grids.items() if iteration}
    run = replace(run, samples=replace(run.samples, grids=later))
    pairs = make_pairs(group_arms([run])[0])
    assert pairs[0].pictures[0].label == f"iteration {min(later)}"


def test_marks_say_what_is_right_and_wrong(pair: tuple[Path, Path]) -> None:
    [run] = read_runs(pair[:1])
    assert run.samples is not None
    scores = {
        "eval/gold/exact": 1.0,
        "eval/gold/facts": 0.0,
        "eval/gold/clean": 0.9,
        "eval/proxy/pickscore": 0.0,
    }
    samples = replace(run.samples, scores={12: (scores,) * 4})
    arm_set = group_arms([replace(run, samples=samples)])[0]
    before, after = make_pairs(arm_set)[0].pictures
    assert before.marks == ()
    marks = [(mark.name, mark.value, mark.verdict) for mark in after.marks]
    assert marks == [("exact", "", "right"), ("facts", "", "wrong"), ("pickscore", "0", "")]
    assert isinstance(after.marks[0], Mark)


def test_films_go_through_training(pair: tuple[Path, Path]) -> None:
    films = make_films(group_arms(read_runs(pair))[0])
    assert [film.arm.label for film in films] == ["vanilla", "guard"]
    iterations = [frame.iteration for frame in films[0].frames]
    assert (iterations[0], iterations[-1]) == (0, 12)
    assert len(iterations) == 12
    assert open_source(films[0].frames[0].source).size == (134, 134)


def test_films_are_of_one_seed_if_all_arms_have_it(pair: tuple[Path, Path]) -> None:
    """The first seed of vanilla has kept no pictures."""
    vanilla, guard = read_runs(pair)
    runs = [
        replace(run, config={**run.config, "seed": seed}, samples=samples)
        for run, seed, samples in (
            (vanilla, 1, None),
            (vanilla, 2, vanilla.samples),
            (guard, 1, guard.samples),
            (guard, 2, guard.samples),
        )
    ]
    assert [film.seed for film in make_films(group_arms(runs)[0])] == [2, 2]
    without = [run for run in runs if run is not runs[3]]
    assert [film.seed for film in make_films(group_arms(without)[0])] == [2, 1]


def test_a_grid_that_is_half_written_is_left_out(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(pair[0], folder)
    last = folder / "samples" / "000012.png"
    last.write_bytes(last.read_bytes()[:200])
    runs, _ = read_readable_runs([folder])
    arm_set = group_arms(runs)[0]
    assert make_pairs(arm_set)[0].place == "seed 0, iterations 0 and 11"
    [film] = make_films(arm_set)
    assert 12 not in [frame.iteration for frame in film.frames]


def test_a_grid_that_is_damaged_within_is_left_out(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(pair[0], folder)
    last = folder / "samples" / "000012.png"
    content = last.read_bytes()
    last.write_bytes(content[:200] + bytes(len(content) - 220) + content[-20:])
    arm_set = group_arms(read_runs([folder]))[0]
    assert make_pairs(arm_set) == ()
    [film] = make_films(arm_set)
    assert 12 not in [frame.iteration for frame in film.frames]


def test_a_grid_of_more_pixels_than_pillow_opens_is_left_out(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    arm_set = group_arms(read_runs(pair[:1]))[0]
    assert make_pairs(arm_set) == ()
    assert make_films(arm_set) == ()


def test_runs_without_pictures_have_none() -> None:
    arm_set = group_arms([make_run()])[0]
    assert make_pairs(arm_set) == ()
    assert make_films(arm_set) == ()
