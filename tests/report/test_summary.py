"""The summary table: each quantity beside its name, each run in its column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from grpo_guard.report import Run, gather, measure
from grpo_guard.report.notation import duration, give_or_take, percent, times
from grpo_guard.report.summary import summary


def table(runs: Sequence[Run]) -> Mapping[str, tuple[str, ...]]:
    return {name: values for section in summary(runs) for name, values in section.rows}


def test_a_run_is_told_in_its_column(pair: tuple[Path, Path]) -> None:
    found = table(gather(pair))
    assert found["objective"] == ("vanilla", "guard")
    assert found["iterations"] == ("12", "12")
    assert found["images"] == ("2,304", "2,304")
    assert found["time"] == ("3 min", "3 min")


def test_evaluations_go_from_first_to_last(pair: tuple[Path, Path]) -> None:
    found = table(gather(pair))
    assert found["proxy: pickscore"] == ("0.441 -> 0.503", "0.441 -> 0.497")
    assert found["gold: exact"] == ("0.396 -> 0.297", "0.396 -> 0.286")
    assert found["gold: clean"] == ("0.910 -> 0.884", "0.910 -> 0.866")


def test_ratios_and_clips_are_those_measured(pair: tuple[Path, Path]) -> None:
    vanilla, guard = gather(pair)
    raw, norm, clip = (
        measure.ratio(vanilla, "raw"),
        measure.ratio(guard, "norm"),
        measure.clip(vanilla),
    )
    assert raw is not None
    assert norm is not None
    assert clip is not None
    found = table([vanilla, guard])
    assert found["raw mean - 1, first trained step"][0] == give_or_take(raw.mean[0], raw.error[0])
    assert found["raw mean - 1, last trained step"][0] == give_or_take(raw.mean[-1], raw.error[-1])
    assert found["normalised mean - 1, last trained step"][1] == give_or_take(
        norm.mean[-1], norm.error[-1]
    )
    own = found["spread of the optimised ratio, largest / smallest"]
    assert (
        own[0]
        == found["spread of the raw ratio, largest / smallest"][0]
        == times(raw.std.max() / raw.std.min())
    )
    assert own[1] == found["spread of the normalised ratio, largest / smallest"][1]
    assert found["clipped above, of A > 0"][0] == percent(clip.high.mean())
    assert found["clipped below, of A < 0"][0] == percent(clip.low.mean())
    assert found["share of the gradient, largest / smallest"][1] == times(
        measure.gradient_spread(guard)
    )


def test_what_was_not_measured_is_a_dash(pair: tuple[Path, Path]) -> None:
    vanilla = gather(pair)[0]
    found = table([vanilla, replace(vanilla, rows=({"iteration": 0.0},))])
    assert {name for name, values in found.items() if values[1] == "-"} == set(list(found)[4:])
    assert [found[name][1] for name in ("iterations", "images", "time")] == ["0 of 12", "0", "0 s"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (9000, "2.5 h")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
