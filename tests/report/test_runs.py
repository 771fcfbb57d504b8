"""Reading run folders that are finished, running, torn, of an earlier version, or missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from grpo_guard.report.reading import read_readable_runs, read_run, read_runs
from grpo_guard.schema import ConfigError

CLIPPING = {"name": "guard", "_target_": "grpo_guard.clipping.clip.Clip", "high": 2e-6}


def write_bare(folder: Path, lines: list[str], **config: Any) -> Path:
    """Write a run folder that holds only a short configuration and these metrics."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"clipping": CLIPPING} | config))
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    return folder


def test_a_finished_run_is_read_whole(pair: tuple[Path, Path]) -> None:
    run = read_run(pair[0])
    assert run.variant == run.label == "vanilla"
    assert (run.ratio, run.iterations, len(run.rows), run.damages) == ("raw", 12, 13, ())
    iteration, proxy = run.series("eval/proxy/pickscore")
    assert iteration[0] == 0
    assert proxy[-1] == pytest.approx(0.503)
    assert run.histograms is not None
    assert run.histograms.counts["ratio_norm/hist/08"].shape == (12, len(run.histograms.edges) - 1)
    assert run.samples is not None
    assert len(run.samples.captions) == 4


def test_a_torn_last_line_of_a_run_that_goes_on_is_left_out_quietly(tmp_path: Path) -> None:
    lines = ['{"iteration": 0, "images": 8}', '{"iteration": 1, "imag']
    run = read_run(write_bare(tmp_path / "run", lines))
    assert [row["iteration"] for row in run.rows] == [0]
    assert run.damages == ()


def test_other_torn_lines_of_metrics_are_counted(tmp_path: Path) -> None:
    lines = ["{", '{"iteration": 0, "images": 8}', "[]", '{"iteration": 1, "images": 9}', "{"]
    folder = write_bare(tmp_path / "run", lines)
    assert read_run(folder).damages == (
        f"{folder}/metrics.jsonl has 2 lines that cannot be read: what they logged is left out;"
        " restore the file",
    )


def test_a_line_cut_inside_a_character_is_torn_too(tmp_path: Path) -> None:
    folder = write_bare(tmp_path / "run", ['{"iteration": 0}'])
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write('\n{"iteration": 1, "é'.encode()[:-1])
    [damage] = read_run(folder).damages
    assert "metrics.jsonl has 1 line that cannot be read" in damage


def change_lines(file: Path, change: Any) -> None:
    file.write_text("".join(change(file.read_text().splitlines(keepends=True))))


def tear(file: Path, number: int) -> None:
    """Cut off the second half of a line."""
    change_lines(
        file,
        lambda lines: [f"{x[: len(x) // 2]}\n" if i == number else x for i, x in enumerate(lines)],
    )


def swap_ends(file: Path) -> None:
    """Damage a file in its middle, so that its length and its end stay."""
    content = bytearray(file.read_bytes())
    content[len(content) // 3 : len(content) // 2] = b"x" * (len(content) // 2 - len(content) // 3)
    file.write_bytes(bytes(content))


PART_DAMAGES = {
    "json": (
        lambda folder: (folder / "samples/000010.json").write_text("[{"),
        "samples/000010.json cannot be read (",
        lambda run: 10 in run.samples.grids and {*range(13)} - run.samples.scores.keys() == {10},
    ),
    "json missing": (
        lambda folder: (folder / "samples/000010.json").unlink(),
        "samples lacks 000010.json: ",
        lambda run: 10 in run.samples.grids and 10 not in run.samples.scores,
    ),
    "png cut off": (
        lambda folder: (folder / "samples/000010.png").write_bytes(b"\x89PNG"),
        "samples/000010.png is cut off: ",
        lambda run: {*range(13)} - run.samples.grids.keys() == {10},
    ),
    "png missing": (
        lambda folder: (folder / "samples/000010.png").unlink(),
        "samples lacks 000010.png: ",
        lambda run: {*range(13)} - run.samples.grids.keys() == {10},
    ),
    "captions missing": (
        lambda folder: (folder / "samples/captions.txt").unlink(),
        "samples/captions.txt cannot be read (it is missing or empty): ",
        lambda run: run.samples is None,
    ),
    "prompt scores torn": (
        lambda folder: tear(folder / "prompt_scores.jsonl", 4),
        "prompt_scores.jsonl has 1 line that cannot be read: ",
        lambda run: {*range(13)} - run.prompt_scores.keys() == {4},
    ),
    "prompt scores torn at the end": (
        lambda folder: tear(folder / "prompt_scores.jsonl", 12),
        "prompt_scores.jsonl has 1 line that cannot be read: ",
        lambda run: 12 not in run.prompt_scores,
    ),
    "prompt scores missing": (
        lambda folder: change_lines(folder / "prompt_scores.jsonl", lambda lines: lines[:4]),
        "prompt_scores.jsonl lacks iteration 4, 5, 6 and 6 others: ",
        lambda run: len(run.prompt_scores) == 4,
    ),
    "prompt scores packed": (
        lambda folder: (folder / "prompt_scores.jsonl").rename(folder / "prompt_scores.jsonl.gz"),
        "prompt_scores.jsonl.gz cannot be read (",
        lambda run: run.prompt_scores == {},
    ),
    "histograms": (
        lambda folder: swap_ends(folder / "histograms.npz"),
        "histograms.npz cannot be read (",
        lambda run: run.histograms is None,
    ),
    "histograms missing": (
        lambda folder: (folder / "histograms.npz").unlink(),
        "histograms.npz is missing: ",
        lambda run: run.histograms is None,
    ),
}
"""How a part is damaged, the beginning of the line about it, and what the run lacks then."""


@pytest.mark.parametrize("name", PART_DAMAGES)
def test_a_damaged_part_leaves_out_that_part_alone(
    name: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    spoil, start, lacks = PART_DAMAGES[name]
    folder = tmp_path / "run"
    shutil.copytree(pair[0], folder)
    spoil(folder)
    [run], left_out = read_readable_runs([folder])
    assert left_out == ()
    assert len(run.rows) == 13
    [line] = run.damages
    assert line.startswith(f"{folder}/{start}")
    assert "restore" in line
    assert "\n" not in line
    assert lacks(run)
    with pytest.raises(ConfigError, match="restore"):
        read_runs([folder])


def test_what_a_run_is_writing_is_no_damage(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The last evaluation is under way: its picture is half written, and so is a line of scores."""
    folder = tmp_path / "run"
    shutil.copytree(pair[0], folder)
    change_lines(folder / "metrics.jsonl", lambda lines: lines[:-1])
    change_lines(folder / "prompt_scores.jsonl", lambda lines: [*lines[:-1], lines[-1][:9]])
    (folder / "histograms.npz").unlink()
    (folder / "samples/000012.png").write_bytes(b"\x89PNG")
    (folder / "samples/000012.json").unlink()
    run = read_run(folder)
    assert run.damages == ()
    assert run.samples is not None
    assert max(run.samples.grids) == 11


def test_the_first_pictures_of_a_run_may_lack_their_captions(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = write_bare(tmp_path / "run", ['{"iteration": 0, "images": 8}'])
    (folder / "samples").mkdir()
    shutil.copy(pair[0] / "samples/000000.png", folder / "samples")
    run = read_run(folder)
    assert (run.samples, run.damages) == (None, ())


def test_numbers_must_be_finite_and_a_repeated_iteration_counts_once(tmp_path: Path) -> None:
    lines = ['{"iteration": 0, "a": 1}', '{"iteration": 0, "a": 2, "b": NaN, "c": Infinity}']
    assert read_run(write_bare(tmp_path / "run", lines)).rows == ({"iteration": 0, "a": 2},)


def test_a_metric_of_rows_with_different_keys_is_in_the_order_of_the_iterations(
    tmp_path: Path,
) -> None:
    rows = [{"iteration": i, "a": 10 + i} | ({"b": 20 + i} if i % 2 else {}) for i in range(4)]
    run = read_run(write_bare(tmp_path / "run", [json.dumps(row) for row in rows]))
    assert [values.tolist() for values in run.series("a")] == [[0, 1, 2, 3], [10, 11, 12, 13]]
    assert [values.tolist() for values in run.series("b")] == [[1, 3], [21, 23]]


def test_a_run_without_histograms_or_samples_is_a_run(tmp_path: Path) -> None:
    run = read_run(write_bare(tmp_path / "run", [json.dumps({"iteration": 0})]))
    assert run.histograms is None
    assert run.samples is None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "config.yaml").unlink(), "config.yaml"),
        (
            lambda folder: (folder / "config.yaml").write_text("a: [1"),
            r"config.yaml cannot be read \(.*\); restore",
        ),
        (
            lambda folder: (folder / "config.yaml").write_text("seed: 1"),
            "clipping is missing; give",
        ),
        (lambda folder: (folder / "metrics.jsonl").unlink(), "metrics.jsonl"),
        (lambda folder: (folder / "metrics.jsonl").write_text(""), "no metrics yet"),
        (lambda folder: (folder / "metrics.jsonl").write_text('{"iter'), "no metrics yet"),
    ],
)
def test_a_folder_that_is_not_a_runs_is_refused_in_one_line(
    tmp_path: Path, spoil: Any, words: str
) -> None:
    folder = write_bare(tmp_path / "run", ['{"iteration": 0}'])
    spoil(folder)
    with pytest.raises(ConfigError, match=words) as error:
        read_run(folder)
    assert "\n" not in str(error.value)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        read_run(tmp_path / "nowhere")


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config.yaml has no data.prompts; give a run"):
        read_run(write_bare(tmp_path / "run", ['{"iteration": 0}'])).setting("data.prompts")


def test_histograms_come_back_as_written(tmp_path: Path) -> None:
    folder = write_bare(tmp_path / "run", ['{"iteration": 0}'])
    counts = np.array([[1, 2, 3]])
    np.savez(
        folder / "histograms.npz",
        iteration=[0],
        edges=[-1.0, 0, 1, 2],
        **{"ratio_raw/hist/00": counts},
    )
    histograms = read_run(folder).histograms
    assert histograms is not None
    assert np.array_equal(histograms.counts["ratio_raw/hist/00"], counts)


def test_a_run_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    clipping = {key: value for key, value in CLIPPING.items() if key != "name"}
    folder = write_bare(tmp_path / "run", ['{"iteration": 0}'], clipping=clipping)
    with pytest.raises(ConfigError) as error:
        read_run(folder)
    assert str(error.value) == (
        f"{folder}/config.yaml was written by an earlier version of grpo_guard"
        " (it has no clipping.name); compare it with that version"
    )


def test_a_folder_that_is_named_twice_is_read_once(pair: tuple[Path, Path]) -> None:
    runs = read_runs([pair[0], pair[1], pair[0]])
    assert [run.label for run in runs] == ["vanilla", "guard"]
