"""The summary table: a row per quantity, a column per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from grpo_guard.report import Run, per_step, read_runs
from grpo_guard.report.notation import format_factor, format_percent, format_with_error
from grpo_guard.report.summary import summarise


def rows_by_name(runs: Sequence[Run]) -> Mapping[str, tuple[str, ...]]:
    return {name: values for section in summarise(runs) for name, values in section.rows}


def test_every_run_has_its_column(pair: tuple[Path, Path]) -> None:
    rows = rows_by_name(read_runs(pair))
    assert rows["objective"] == ("vanilla", "guard")
    assert rows["iterations"] == ("12", "12")
    assert rows["images"] == ("2,304", "2,304")
    assert rows["time"] == ("3 min", "3 min")


def test_evaluations_go_from_first_to_last(pair: tuple[Path, Path]) -> None:
    rows = rows_by_name(read_runs(pair))
    assert rows["proxy: pickscore"] == ("0.441 -> 0.503", "0.441 -> 0.497")
    assert rows["gold: exact"] == ("0.396 -> 0.297", "0.396 -> 0.286")
    assert rows["gold: clean"] == ("0.910 -> 0.884", "0.910 -> 0.866")


def test_ratios_and_clips_are_as_measured(pair: tuple[Path, Path]) -> None:
    vanilla, guard = read_runs(pair)
    raw = per_step.ratio_statistics(vanilla, "raw")
    norm = per_step.ratio_statistics(guard, "norm")
    clipped = per_step.clipped_shares(vanilla)
    assert raw is not None
    assert norm is not None
    assert clipped is not None
    first, last = (format_with_error(raw.mean[i], raw.error[i]) for i in (0, -1))
    spread = format_factor(raw.std.max() / raw.std.min())
    rows = rows_by_name([vanilla, guard])
    assert rows["raw mean - 1, first trained step"][0] == first
    assert rows["raw mean - 1, last trained step"][0] == last
    assert rows["normalised mean - 1, last trained step"][1] == format_with_error(
        norm.mean[-1], norm.error[-1]
    )
    own = rows["spread of the optimised ratio, largest / smallest"]
    assert own[0] == rows["spread of the raw ratio, largest / smallest"][0] == spread
    assert own[1] == rows["spread of the normalised ratio, largest / smallest"][1]
    assert rows["clipped above, of A > 0"][0] == format_percent(clipped.high.mean())
    assert rows["clipped below, of A < 0"][0] == format_percent(clipped.low.mean())
    gradient = format_factor(per_step.gradient_spread(guard))
    assert rows["share of the gradient, largest / smallest"][1] == gradient


def test_what_was_not_measured_is_a_dash(pair: tuple[Path, Path]) -> None:
    vanilla = read_runs(pair)[0]
    rows = rows_by_name([vanilla, replace(vanilla, rows=({"iteration": 0.0},))])
    assert {name for name, values in rows.items() if values[1] == "-"} == set(list(rows)[4:])
    assert [rows[name][1] for name in ("iterations", "images", "time")] == ["0 of 12", "0", "0 s"]
