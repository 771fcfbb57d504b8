"""Reading run folders that are finished, running, torn, of an earlier version, or missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from grpo_guard.report.reading import read_run, read_runs
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
    assert (run.ratio, run.iterations, len(run.rows), run.torn) == ("raw", 12, 13, 0)
    iteration, proxy = run.series("eval/proxy/pickscore")
    assert iteration[0] == 0
    assert proxy[-1] == pytest.approx(0.503)
    assert run.histograms is not None
    assert run.histograms.counts["ratio_norm/hist/08"].shape == (12, len(run.histograms.edges) - 1)
    assert run.samples is not None
    assert len(run.samples.captions) == 4


def test_a_torn_last_line_is_left_out_and_counted(tmp_path: Path) -> None:
    lines = ['{"iteration": 0, "images": 8}', '{"iteration": 1, "imag']
    run = read_run(write_bare(tmp_path / "run", lines))
    assert [row["iteration"] for row in run.rows] == [0]
    assert run.torn == 1


def test_a_line_cut_inside_a_character_is_torn_too(tmp_path: Path) -> None:
    folder = write_bare(tmp_path / "run", ['{"iteration": 0}'])
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write('\n{"iteration": 1, "é'.encode()[:-1])
    assert read_run(folder).torn == 1


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
        (
            lambda folder: (folder / "histograms.npz").write_bytes(b"PK\x03\x04 torn"),
            r"histograms.npz cannot be read \(.*\); restore",
        ),
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
