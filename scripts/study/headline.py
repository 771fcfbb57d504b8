"""The headline of the study: vanilla against Guard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from grpo_guard.report.comparisons import Comparison
from grpo_guard.report.curves import PROXY, score_of
from grpo_guard.report.notation import typeset
from grpo_guard.report.reading import read_runs
from grpo_guard.report.results import SetResult, analyse_runs
from study.measures import (
    GOLD,
    CurveOf,
    distance_curve,
    measure_change,
    plain_curve,
    write_change,
    write_seeds,
    write_verdict,
)
from study.pictures import describe_faults

SEEDS = 8
"""Seeds of the headline in the protocol."""
SCORES = {
    "proxy": PROXY,
    "exact (main gold)": "exact",
    "facts": "facts",
    "clean": "clean",
    "learned gold": "pickscore_gold",
}
"""Scores of held-out captions, by their name in the table."""
TRAINING_SCORES = {
    "proxy, training captions": "eval/train/proxy/pickscore",
    "exact, training captions": "eval/train/gold/exact",
}
"""Metric keys of the scores of training captions, by their name in the table."""


def analyse_headline(folder: Path) -> SetResult:
    """Analyse the runs in a folder; all have the same backbone and reward."""
    (result,) = analyse_runs(read_runs(sorted(path for path in folder.iterdir() if path.is_dir())))
    return result


def describe_results(result: SetResult) -> str:
    """Return the results as Markdown: the answers, and the change of every score."""
    guard = find_guard(result)
    lines = [
        f"After {write_seeds(guard.pairs)} of the headline:",
        "",
        "| question | verdict | evidence |",
        "|---|---|---|",
        *_answer(result, guard),
        "",
        "Change from before training to iteration"
        f" {result.settled.iterations[-1]}, with 95 % intervals over seeds and prompts (of training"
        " captions and of the distance, over seeds alone):",
        "",
        *_table(result),
        *describe_faults(
            {arm.label: arm for arm in result.settled.arms}, int(result.settled.iterations[-1])
        ),
    ]
    return typeset("\n".join(lines))


def find_guard(result: SetResult) -> Comparison:
    """Return the headline: vanilla against Guard."""
    (guard,) = (c for c in result.comparisons if c.other.label == "guard")
    return guard


def _answer(result: SetResult, guard: Comparison) -> Iterator[str]:
    """Return the rows of the table of answers."""
    for arm in (guard.reference, guard.other):
        change = result.change_of(arm)
        assert change is not None
        evidence = f"proxy {write_change(change.proxy)}, {GOLD} {write_change(change.golds[GOLD])}"
        yield f"| Does {arm.label} over-optimise? | {change.over_optimises} | {evidence} |"
    difference = guard.golds[GOLD]
    places = {
        "after equal images (main test)": difference.at_end,
        "at equal proxy": difference.at_proxy,
        "at equal distance from the base": difference.at_distance,
    }
    for place, interval in places.items():
        verdict = write_verdict(interval, guard.pairs, SEEDS)
        yield f"| Is Guard's {GOLD} higher {place}? | {verdict} | {write_change(interval)} |"
    yield _answer_early_stop(result, guard)


def _answer_early_stop(result: SetResult, guard: Comparison) -> str:
    """Return the row for vanilla that is stopped where the learned gold is highest."""
    vanilla = result.change_of(guard.reference)
    assert vanilla is not None
    stopped = write_change(vanilla.stops[GOLD])
    return (
        f"| What does stopping vanilla early keep? | - | {GOLD} {stopped}, where the learned gold"
        " is highest |"
    )


def _table(result: SetResult) -> Iterator[str]:
    """Return a row for every score and a column for every arm."""
    arms = result.settled.arms
    yield "| score | " + " | ".join(arm.label for arm in arms) + " |"
    yield "|---|" + "---|" * len(arms)
    for title, curve_of in _curves().items():
        cells = [write_change(measure_change(arm, curve_of, result.settled)) for arm in arms]
        yield f"| {title} | " + " | ".join(cells) + " |"


def _curves() -> dict[str, CurveOf]:
    held_out = {title: score_of(name) for title, name in SCORES.items()}
    training = {
        title: lambda run, key=key: plain_curve(run, key) for title, key in TRAINING_SCORES.items()
    }
    distance = {"distance from the base, eval/kl": distance_curve}
    return held_out | training | distance
