"""The summary table: every number is recomputed from the files of the runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_runs import FALLING, make_run

from grpo_guard.report import Run, analyse_runs, per_step, read_runs
from grpo_guard.report.notation import format_factor, format_percent, format_with_error
from grpo_guard.report.summary import summarise


def rows_by_name(runs: Sequence[Run]) -> Mapping[str, tuple[str, ...]]:
    [result] = analyse_runs(runs)
    return {name: values for section in summarise(result) for name, values in section.texts}


def read_metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def number(cell: str) -> float:
    return float(cell.split(" ")[0])


def test_every_arm_has_its_column(pair: tuple[Path, Path]) -> None:
    rows = rows_by_name(read_runs(pair))
    assert rows["objective"] == ("vanilla", "guard")
    assert rows["seeds (which)"] == ("1 (0)", "1 (0)")
    assert rows["iterations"] == ("12", "12")
    assert rows["images"] == ("2,304", "2,304")
    assert rows["time of a run"] == ("3 min", "3 min")
    assert rows["images per second"] == ("19.8", "19.8")


@pytest.mark.parametrize("column", [0, 1])
def test_changes_are_those_of_the_files(pair: tuple[Path, Path], column: int) -> None:
    rows = rows_by_name(read_runs(pair))
    metrics = read_metrics(pair[column])
    keys = {f"gold: {name}": f"eval/gold/{name}" for name in ("exact", "facts", "clean")}
    keys |= {"gold: pickscore_gold": "eval/gold/pickscore_gold"}
    keys |= {"proxy: pickscore": "eval/proxy/pickscore"}
    for name, key in keys.items():
        change = metrics[-1][key] - metrics[0][key]
        assert number(rows[name][column]) == pytest.approx(change, abs=6e-4)


def test_differences_and_peaks_are_those_of_the_files(pair: tuple[Path, Path]) -> None:
    rows = rows_by_name(read_runs(pair))
    vanilla, guard = ([row["eval/gold/exact"] for row in read_metrics(folder)] for folder in pair)
    assert rows["exact, at the end"][0] == "-"
    assert number(rows["exact, at the end"][1]) == pytest.approx(guard[-1] - vanilla[-1], abs=6e-4)
    peak = vanilla.index(max(vanilla))
    assert rows["exact: peak at iteration"][0] == str(peak)
    assert number(rows["exact: gained there"][0]) == pytest.approx(
        max(vanilla) - vanilla[0], abs=6e-3
    )
    assert number(rows["exact: lost after"][0]) == pytest.approx(
        vanilla[-1] - max(vanilla), abs=6e-3
    )


def test_seeds_share_a_column() -> None:
    runs = [make_run(golds={"facts": FALLING}, seed=seed) for seed in (4, 2, 3)]
    rows = rows_by_name(runs)
    assert rows["seeds (which)"] == ("3 (2 to 4)",)
    assert rows["gold: facts"][0].startswith("-0.300 ± ")


def test_seeds_that_are_no_row_are_named_one_by_one() -> None:
    """A single seed is not taken for a number of seeds."""
    assert rows_by_name([make_run(seed=seed) for seed in (1, 7, 3)])["seeds (which)"] == (
        "3 (1, 3, 7)",
    )
    assert rows_by_name([make_run(seed=8)])["seeds (which)"] == ("1 (8)",)


def test_ratios_and_clips_are_as_measured(pair: tuple[Path, Path]) -> None:
    vanilla, guard = read_runs(pair)
    raw = per_step.ratio_statistics(vanilla, "raw")
    norm = per_step.ratio_statistics(guard, "norm")
    clipped = per_step.clipped_shares(vanilla)
    assert raw is not None
    assert norm is not None
    assert clipped is not None
    rows = rows_by_name([vanilla, guard])
    for name, at in (("first", 0), ("last", -1)):
        text = format_with_error(raw.mean[at], raw.error[at])
        assert rows[f"raw mean - 1, {name} trained step"][0] == text
    assert rows["normalised mean - 1, last trained step"][1] == format_with_error(
        norm.mean[-1], norm.error[-1]
    )
    own = rows["largest / smallest spread, optimised ratio"]
    spread = format_factor(raw.std.max() / raw.std.min())
    assert own[0] == rows["largest / smallest spread, raw ratio"][0] == spread
    assert own[1] == rows["largest / smallest spread, normalised ratio"][1]
    assert rows["clipped above, of A > 0"][0] == format_percent(clipped.high.mean())
    assert rows["clipped below, of A < 0"][0] == format_percent(clipped.low.mean())
    gradient = format_factor(per_step.gradient_spread(guard))
    assert rows["largest / smallest share of the gradient"][1] == gradient


def test_what_was_not_measured_is_a_dash(pair: tuple[Path, Path]) -> None:
    vanilla = read_runs(pair)[0]
    bare = replace(vanilla, rows=({"iteration": 0.0},), config=dict(vanilla.config) | {"lr": 1})
    rows = rows_by_name([vanilla, replace(bare, folder=vanilla.folder / "bare")])
    assert rows["iterations"][1] == "0 of 12"
    measured = {name for name, values in rows.items() if values[1] != "-"}
    assert measured == {"objective", "seeds (which)", "iterations", "images", "time of a run"}


def sections_of(runs: Sequence[Run]) -> dict[str, dict[str, tuple[str, ...]]]:
    [result] = analyse_runs(runs)
    return {section.title: dict(section.texts) for section in summarise(result)}


def begun(run: Run, rows: int) -> Run:
    """Return the run as if it had only come so far, in a folder of its own."""
    name = f"{run.label}{run.config['seed']}"
    return replace(run, rows=run.rows[:rows], folder=Path(name), label=name)


def test_the_reference_is_named_that_is_compared_with() -> None:
    """Nothing is left of vanilla: the others are compared with RatioNorm."""
    arms = [begun(make_run("vanilla"), 2), begun(make_run("rationorm"), 8)]
    sections = sections_of([*arms, begun(make_run("guard"), 8)])
    assert "Golds minus those of rationorm" in sections
    assert sections["Golds minus those of rationorm"]["facts, at the end"][:2] == ("-", "-")
    [result] = analyse_runs([*arms, begun(make_run("guard"), 8)])
    assert "No run of vanilla is left: rationorm is the reference." in result.settled.left_out


def test_means_leave_out_the_runs_that_the_note_names() -> None:
    """Seed 0 is there three times, once as a run whose clip acts twice as often."""
    often = make_run(seed=0, low=(0, 0, 0.02, 0.6), high=(0,) * 4)
    runs = [make_run(seed=1, high=(0,) * 4), make_run(seed=0, high=(0,) * 4), often, often]
    named = [replace(run, folder=Path(str(place))) for place, run in enumerate(runs)]
    rows = rows_by_name(named)
    assert rows["seeds (which)"] == ("2 (0 to 1)",)
    assert rows["clipped below, of A < 0"] == (format_percent(0.31 / 4),)


def test_an_arm_of_which_nothing_is_left_has_no_means() -> None:
    rows = rows_by_name(
        [
            begun(make_run("vanilla"), 8),
            begun(make_run("rationorm"), 8),
            begun(make_run("guard"), 2),
        ]
    )
    assert rows["iterations"][2] == "2 of 8"
    assert rows["clipped below, of A < 0"][2] == "-"
    assert rows["clipped below, of A < 0"][0] != "-"


def test_the_distance_is_that_of_the_last_common_evaluation() -> None:
    far = make_run(seed=1)
    near = begun(make_run(seed=2), 5)
    for row in (*far.rows, *near.rows):
        row["eval/kl"] = row["iteration"] ** 2  # type: ignore[index]
    assert rows_by_name([far, near])["distance from the base, sqrt(KL)"] == ("4",)


def test_the_distance_has_an_interval_over_seeds() -> None:
    runs = [make_run(seed=seed) for seed in range(3)]
    for run, scale in zip(runs, (0.9, 1.0, 1.1), strict=True):
        for row in run.rows:
            row["eval/kl"] = scale**2 * row["iteration"]  # type: ignore[index]
    [cell] = rows_by_name(runs)["distance from the base, sqrt(KL)"]
    assert re.fullmatch(r"2\.65 ± 0\.\d\d", cell)
