"""Run folders: finished, running, torn, missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from grpo_guard.report.runs import differences, gather, labels, read
from grpo_guard.types import ConfigError

CLIP = {"_target_": "grpo_guard.clipping.clip.Clip", "high": 2e-6}


def bare(folder: Path, lines: list[str], **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"clipping": CLIP} | config))
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    return folder


def clipping(ratio: str, weight: str, high: float = 1e-4) -> dict[str, Any]:
    return {
        "ratio": {"_target_": f"grpo_guard.ratio.log_ratio_{ratio}"},
        "weight": {"_target_": f"grpo_guard.clipping.weight.{weight}"},
        "_target_": "grpo_guard.clipping.clip.Clip",
        "high": high,
    }


VANILLA, GUARD = clipping("raw", "uniform"), clipping("norm", "inverse_dt", 2e-6)


def test_a_finished_run_is_read_whole(pair: tuple[Path, Path]) -> None:
    run = read(pair[0])
    assert run.objective == run.label == "vanilla"
    assert (run.ratio, run.iterations, len(run.rows), run.torn) == ("raw", 12, 13, 0)
    iteration, proxy = run.series("eval/proxy/pickscore")
    assert iteration[0] == 0
    assert proxy[-1] == pytest.approx(0.503)
    assert run.histograms is not None
    assert run.histograms.counts["ratio_norm/hist/08"].shape == (12, len(run.histograms.edges) - 1)
    assert run.samples is not None
    assert len(run.samples.captions) == 4


def test_a_torn_last_line_is_left_out_and_counted(tmp_path: Path) -> None:
    run = read(bare(tmp_path / "run", ['{"iteration": 0, "images": 8}', '{"iteration": 1, "imag']))
    assert [row["iteration"] for row in run.rows] == [0]
    assert run.torn == 1


def test_a_line_cut_inside_a_character_is_torn_too(tmp_path: Path) -> None:
    folder = bare(tmp_path / "run", ['{"iteration": 0}'])
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write('\n{"iteration": 1, "é'.encode()[:-1])
    assert read(folder).torn == 1


def test_what_is_not_finite_is_left_out_and_a_repeated_iteration_replaces_the_old(
    tmp_path: Path,
) -> None:
    lines = ['{"iteration": 0, "a": 1}', '{"iteration": 0, "a": 2, "b": NaN, "c": Infinity}']
    assert read(bare(tmp_path / "run", lines)).rows == ({"iteration": 0, "a": 2},)


def test_a_run_without_histograms_or_samples_is_a_run(tmp_path: Path) -> None:
    run = read(bare(tmp_path / "run", [json.dumps({"iteration": 0})]))
    assert run.histograms is None
    assert run.samples is None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "config.yaml").unlink(), "config.yaml"),
        (lambda folder: (folder / "config.yaml").write_text("a: [1"), "config.yaml cannot be read"),
        (lambda folder: (folder / "config.yaml").write_text("seed: 1"), "clipping._target_"),
        (lambda folder: (folder / "metrics.jsonl").unlink(), "metrics.jsonl"),
        (lambda folder: (folder / "metrics.jsonl").write_text(""), "no metrics yet"),
        (lambda folder: (folder / "metrics.jsonl").write_text('{"iter'), "no metrics yet"),
        (
            lambda folder: (folder / "histograms.npz").write_bytes(b"PK\x03\x04 torn"),
            "histograms.npz cannot be read",
        ),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path, spoil: Any, words: str) -> None:
    folder = bare(tmp_path / "run", ['{"iteration": 0}'])
    spoil(folder)
    with pytest.raises(ConfigError, match=words) as error:
        read(folder)
    assert "\n" not in str(error.value)


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        read(tmp_path / "nowhere")


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config.yaml has no data.prompts"):
        read(bare(tmp_path / "run", ['{"iteration": 0}'])).setting("data.prompts")


def test_histograms_come_back_as_written(tmp_path: Path) -> None:
    folder = bare(tmp_path / "run", ['{"iteration": 0}'])
    counts = np.array([[1, 2, 3]])
    np.savez(
        folder / "histograms.npz",
        iteration=[0],
        edges=[-1.0, 0, 1, 2],
        **{"ratio_raw/hist/00": counts},
    )
    found = read(folder).histograms
    assert found is not None
    assert np.array_equal(found.counts["ratio_raw/hist/00"], counts)


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        ([{"clipping": GUARD}], ("guard",)),
        ([{"clipping": VANILLA, "seed": 0}, {"clipping": GUARD, "seed": 0}], ("vanilla", "guard")),
        (
            [
                {"clipping": VANILLA, "seed": 0},
                {"clipping": GUARD, "seed": 0},
                {"clipping": GUARD, "seed": 1},
            ],
            ("vanilla", "guard, seed 0", "guard, seed 1"),
        ),
        (
            [{"clipping": GUARD, "seed": 0}, {"clipping": GUARD | {"high": 4e-6}, "seed": 1}],
            ("guard, clip 2e-6", "guard, clip 4e-6"),
        ),
        (
            [
                {"clipping": GUARD, "reward": {"_target_": f"rewards.{name}"}, "seed": 3}
                for name in ("OCR", "PickScore")
            ],
            ("guard, ocr", "guard, pickscore"),
        ),
        (
            [{"clipping": GUARD, "output": "a"}, {"clipping": GUARD, "output": "b"}],
            ("guard, one", "guard, two"),
        ),
        ([{"clipping": clipping("raw", "inverse_dt")}], ("raw x inverse_dt",)),
        ([{"clipping": {"_target_": "grpo_guard.clipping.dppo.Dppo", "tau": 1e-6}}], ("dppo",)),
    ],
)
def test_a_run_is_called_by_what_tells_it_from_the_others(
    configs: Any, expected: tuple[str, ...]
) -> None:
    assert labels(configs, ["one", "two", "three"][: len(configs)]) == expected


def test_differences_leave_out_what_changes_no_result(tmp_path: Path) -> None:
    line = ['{"iteration": 0}']
    a = bare(tmp_path / "a", line, clipping=VANILLA, seed=0, output="a", strategy={"device": "cpu"})
    b = bare(
        tmp_path / "b",
        line,
        clipping=GUARD,
        seed=0,
        output="b",
        strategy={"device": "cuda"},
        extra=None,
    )
    assert differences(gather([a, b, a])) == {
        "clipping.ratio._target_": ("log_ratio_raw", "log_ratio_norm"),
        "clipping.weight._target_": ("uniform", "inverse_dt"),
        "clipping.high": ("0.0001", "2e-6"),
        "extra": ("", "null"),
    }
