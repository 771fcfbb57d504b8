"""The other arms of the study: controls, remedies, parts of Guard, and worse proxies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from grpo_guard.report.arms import Arm, ArmSet, group_arms, seed_of, share_axes
from grpo_guard.report.comparisons import Difference, compare_arms
from grpo_guard.report.curves import PROXY, score_of
from grpo_guard.report.notation import format_ends, typeset
from grpo_guard.report.reading import read_runs
from grpo_guard.report.runs import Run
from grpo_guard.report.settling import settle
from study.lenient import describe_lenient
from study.measures import (
    GOLD,
    distance_curve,
    measure_arm,
    write_change,
    write_verdict,
)

SEEDS = 3
"""Seeds of each of these arms in the protocol."""
ARMS = {
    "vanilla": "vanilla",
    "guard": "Guard",
    "vanilla_shuffled": "vanilla, shuffled advantages",
    "guard_shuffled": "Guard, shuffled advantages",
    "vanilla_kl_01": "vanilla, KL penalty of .01",
    "vanilla_kl_04": "vanilla, KL penalty of .04",
    "vanilla_third_rate": "vanilla, a third of the learning rate",
    "guard_third_rate": "Guard, a third of the learning rate",
    "rationorm": "RatioNorm",
    "guard_velocity": "guard_velocity",
    "vanilla_earlier_half": "vanilla, earlier half of the steps",
    "vanilla_later_half": "vanilla, later half of the steps",
    "vanilla_inverse_dt": "vanilla with Guard's weight",
    "vanilla_quarter": "vanilla, pickscore_quarter",
    "guard_quarter": "Guard, pickscore_quarter",
    "vanilla_terse": "vanilla, pickscore_terse",
    "guard_terse": "Guard, pickscore_terse",
    "vanilla_geneval": "vanilla, GenEval accuracy",
    "guard_geneval": "Guard, GenEval accuracy",
}
"""Name of each arm in the tables, by the name of its folders without the seed."""
HEADLINE = ("vanilla", "guard")
"""Arms whose runs are those of the headline."""
DRIFT = ("vanilla_shuffled", "guard_shuffled")
"""Arms whose steps carry no signal."""
QUESTIONS = (
    ("vanilla", "vanilla_shuffled"),
    ("guard", "guard_shuffled"),
    ("guard_shuffled", "vanilla_shuffled"),
    ("guard", "vanilla_kl_01"),
    ("guard", "vanilla_kl_04"),
    ("guard", "vanilla_third_rate"),
    ("guard_third_rate", "vanilla_third_rate"),
    ("rationorm", "vanilla"),
    ("guard", "rationorm"),
    ("guard_velocity", "vanilla"),
    ("guard_velocity", "guard"),
    ("vanilla_earlier_half", "vanilla"),
    ("vanilla_later_half", "vanilla"),
    ("vanilla_later_half", "vanilla_earlier_half"),
    ("vanilla_inverse_dt", "vanilla"),
    ("guard", "vanilla_inverse_dt"),
    ("guard_quarter", "vanilla_quarter"),
    ("guard_terse", "vanilla_terse"),
    ("guard_geneval", "vanilla_geneval"),
    ("vanilla", "vanilla_quarter"),
    ("vanilla", "vanilla_terse"),
    ("guard", "guard_quarter"),
    ("guard", "guard_terse"),
)
"""Pairs of arms: is the gold of the first higher than that of the second?"""
NOT_COMPARABLE = "-"
"""What stands in the place of a difference at equal proxy between arms of different proxies."""


def analyse_arms(headline: Iterable[Run], others: Path) -> dict[str, Arm]:
    """Return the arms by the name of their folders.

    Of the headline's runs, those of the first seeds belong to them.

    Raises:
        ValueError: Runs of one name differ in more than their seed, or a name is unknown.

    """
    folders = [path for path in others.iterdir() if path.is_dir()] if others.is_dir() else []
    runs = [run for run in headline if seed_of(run) <= SEEDS]
    runs += read_runs(sorted(folders)) if folders else ()
    arms: dict[str, Arm] = {}
    for arm in (arm for arm_set in group_arms(runs) for arm in arm_set.arms):
        names = {run.folder.name.rpartition("_seed")[0] for run in arm.runs}
        name = names.pop()
        if names or name in arms or name not in ARMS:
            raise ValueError(f"{name}: its folders are not the runs of one arm of the study")
        arms[name] = arm
    return arms


def describe_arms(arms: Mapping[str, Arm]) -> str:
    """Return what is known of these arms as Markdown."""
    others = [name for name in ARMS if name not in HEADLINE]
    finished = sum(len(arms[name].runs) for name in others if name in arms)
    lines = [
        "### The other arms",
        "",
        f"Of their {SEEDS * len(others)} runs, {finished} are finished. A question is judged when"
        f" both arms have {SEEDS} seeds.",
        f"The headline's arms are shown with seeds 1 to {SEEDS} alone. GenEval's accuracy has"
        " captions of its own, and as a proxy it is a share.",
        "",
        *_tabulate_changes(arms),
        "",
        *_tabulate_answers(arms),
        *describe_lenient(arms),
        *_list_missing(arms),
    ]
    return typeset("\n".join(lines).rstrip())


def _tabulate_changes(arms: Mapping[str, Arm]) -> Iterator[str]:
    yield f"| arm | seeds | proxy | {GOLD} | distance from the base |"
    yield "|---|---|---|---|---|"
    for name, title in ARMS.items():
        if name not in arms:
            continue
        curves = (score_of(PROXY), score_of(GOLD), distance_curve)
        cells = [write_change(measure_arm(arms[name], curve)) for curve in curves]
        yield f"| {title} | {len(arms[name].runs)} of {SEEDS} | {' | '.join(cells)} |"


def _list_missing(arms: Mapping[str, Arm]) -> Iterator[str]:
    """Name the arms that have no finished run, a line each."""
    missing = [title for name, title in ARMS.items() if name not in arms]
    if missing:
        yield ""
        yield "These arms have no finished run yet:"
        yield ""
        yield from (f"* {title}" for title in missing)


def _tabulate_answers(arms: Mapping[str, Arm]) -> Iterator[str]:
    answered = [pair for pair in QUESTIONS if all(name in arms for name in pair)]
    if not answered:
        return
    yield f"How much higher `{GOLD}` is in one arm than in another, on the same seeds:"
    yield ""
    places = ("after equal images", "at equal proxy", "at equal distance")
    yield f"| arm | against | {' | '.join(places)} | is it higher? |"
    yield "|---|---|---|---|---|---|"
    for pair in answered:
        higher, lower = (arms[name] for name in pair)
        difference, pairs = compare_by_gold(lower, higher)
        at_proxy = format_ends(difference.at_proxy)
        cells = [
            *(ARMS[name] for name in pair),
            format_ends(difference.at_end),
            at_proxy if _share_proxy(lower, higher) else NOT_COMPARABLE,
            format_ends(difference.at_distance),
        ]
        yield f"| {' | '.join(cells)} | {write_verdict(difference.at_end, pairs, SEEDS)} |"


def _share_proxy(first: Arm, second: Arm) -> bool:
    """Return whether two arms are trained on the same proxy."""
    return share_axes(*(ArmSet(title="", arms=(arm,)) for arm in (first, second)))


def compare_by_gold(reference: Arm, other: Arm) -> tuple[Difference, int]:
    """Return how much higher the main gold is in the other arm, and the number of pairs."""
    settled = settle(ArmSet(title="", arms=(reference, other)))
    comparison = compare_arms(*settled.arms, settled)
    assert comparison is not None, "every finished run has several evaluations"
    return comparison.golds[GOLD], comparison.pairs
