"""All results of a set of arms: changes, comparisons, verdicts in a sentence each, and claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from grpo_guard.report.arms import (
    Arm,
    ArmSet,
    caution_few_seeds,
    cautions,
    group_arms,
    share_axes,
)
from grpo_guard.report.claims import Claim, judge_claims
from grpo_guard.report.comparisons import (
    ArmChange,
    Comparison,
    Difference,
    compare_arms,
    measure_change,
)
from grpo_guard.report.evidence import Measured
from grpo_guard.report.notation import count_of, format_interval
from grpo_guard.report.runs import Run
from grpo_guard.report.settling import Settled, settle
from grpo_guard.report.statistics import MIN_SEEDS, DifferenceVerdict
from grpo_guard.schema import record

MOST_GOLDS = 2
"""Golds that a sentence names; the table has all."""


@record
class Answer:
    """The result of a comparison in a few sentences."""

    question: str
    """What is judged."""
    verdict: DifferenceVerdict
    """The verdict."""
    sentence: str
    """The numbers behind it."""
    cautions: tuple[str, ...]
    """What to keep in mind."""


@record
class SetResult:
    """Everything that the page and the table say of a set of arms."""

    arm_set: ArmSet
    """The arms."""
    settled: Settled
    """The arms as far as they have come."""
    changes: tuple[ArmChange, ...]
    """What training changed in every arm."""
    comparisons: tuple[Comparison, ...]
    """The reference against every other arm."""
    claims: tuple[Claim, ...]
    """The claims of the paper."""
    study: SetResult | None = None
    """What a study of the same backbone and reward found, against which these runs are seen."""

    @property
    def answers(self) -> tuple[Answer, ...]:
        """An answer for every comparison; without any, one for every arm."""
        if not self.comparisons:
            changes = [change for change in self.changes if change.golds]
            return tuple(_answer_arm(change, self.settled) for change in changes)
        return tuple(_answer_comparison(self, c) for c in self.comparisons if c.golds)

    @property
    def answers_behind(self) -> tuple[Answer, ...]:
        """The answers of the study behind."""
        answers = self.study.answers if self.study else ()
        return tuple(
            replace(answer, question=f"In the study behind: {answer.question}")
            for answer in answers
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What is left out of means and comparisons, and what to keep in mind about the answers."""
        cautions = (text for answer in self.answers for text in answer.cautions)
        behind = (text for answer in self.answers_behind for text in answer.cautions)
        marked = (f"Of the study behind: {text}" for text in behind)
        return tuple(dict.fromkeys((*self.settled.left_out, *cautions, *marked)))

    @property
    def lead(self) -> str:
        """What training changed in the reference, if several arms are compared with it."""
        if len(self.comparisons) < 2 or not self.changes[0].golds:
            return ""
        return f"{_describe_change(self.changes[0])} ({_place(self.settled)})."

    def change_of(self, arm: Arm) -> ArmChange | None:
        """Return what training changed in an arm; None if that is not known."""
        return next((c for c in self.changes if c.arm.label == arm.label), None)

    def comparison_of(self, arm: Arm) -> Comparison | None:
        """Return the reference against an arm; None for the reference."""
        return next((c for c in self.comparisons if c.other.label == arm.label), None)


def analyse_runs(runs: Sequence[Run], study: Sequence[Run] = ()) -> tuple[SetResult, ...]:
    """Group runs into sets of arms, and compare the arms of each set.

    The runs of a study are analysed apart; a set has those of its backbone and reward behind it.
    """
    studies = analyse_runs(study) if study else ()
    return tuple(
        replace(
            _analyse_set(arm_set),
            study=next((s for s in studies if share_axes(s.arm_set, arm_set)), None),
        )
        for arm_set in group_arms(runs)
    )


def _analyse_set(arm_set: ArmSet) -> SetResult:
    settled = settle(arm_set)
    changes = tuple(filter(None, (measure_change(arm, settled) for arm in settled.arms)))
    comparisons = tuple(filter(None, (compare_arms(*pair, settled) for pair in settled.pairs)))
    measured = Measured(arms=settled.arms, changes=changes, comparisons=comparisons)
    return SetResult(
        arm_set=arm_set,
        settled=settled,
        changes=changes,
        comparisons=comparisons,
        claims=judge_claims(measured),
    )


def _answer_comparison(result: SetResult, comparison: Comparison) -> Answer:
    reference, other = comparison.reference, comparison.other
    gold, difference = next(iter(comparison.golds.items()))
    arms = [other] if result.lead else [other, reference]
    described = "; ".join(
        _describe_change(change) for arm in arms if (change := result.change_of(arm))
    )
    lower = difference.at_end.value < 0
    side = "lower" if lower else "higher"
    size = format_interval(-difference.at_end if lower else difference.at_end, signed=False)
    count = count_of(comparison.pairs, "pair of seeds", "pairs of seeds")
    return Answer(
        question=f"Is {gold} higher with {other.label} than with {reference.label}?",
        verdict=difference.verdict,
        sentence=f"{described}; {gold} is {size} {side} ({count},"
        f" {_place(result.settled)}).{_explain_open(difference.seeds_needed, comparison.pairs)}"
        f"{_describe_matched(difference)}",
        cautions=cautions(reference, other),
    )


def _describe_matched(difference: Difference) -> str:
    """Write how large a difference is at equal proxy and at equal distance, where it is known."""
    places = {
        "at equal proxy": difference.at_proxy,
        "at equal distance from the base": difference.at_distance,
    }
    known = [
        f"{format_interval(interval, signed=True)} {place}"
        for place, interval in places.items()
        if math.isfinite(interval.value)
    ]
    return f" The difference is {' and '.join(known)}." if known else ""


def _place(settled: Settled) -> str:
    return f"iteration {settled.iterations[-1]}"


def _answer_arm(change: ArmChange, settled: Settled) -> Answer:
    gold = next(iter(change.golds))
    count = count_of(len(change.arm.runs), "seed", "seeds")
    sentence = f"{_describe_change(change)} ({count}, {_place(settled)})."
    return Answer(
        question=f"Does {gold} fall while the proxy rises in {change.arm.label}?",
        verdict=change.over_optimises,
        sentence=sentence,
        cautions=tuple(filter(None, [caution_few_seeds(change.arm)])),
    )


def _describe_change(change: ArmChange) -> str:
    golds = list(change.golds.items())[:MOST_GOLDS]
    parts = [f"{name} {format_interval(gold, signed=True)}" for name, gold in golds]
    proxy = format_interval(change.proxy, signed=True)
    return f"{change.arm.label}: proxy {proxy}, {', '.join(parts)}"


def _explain_open(needed: int | None, pairs: int) -> str:
    """Say how many seeds an undecided comparison lacks, and how far that can be known."""
    if needed is None:
        return ""
    more = needed - pairs
    if pairs == 1:
        return f" Undecided with 1 seed: at least {more} more are needed."
    roughly = "very roughly" if pairs < MIN_SEEDS else "about"
    return (
        f" Undecided with {pairs} seeds: {roughly} {more} more would decide, if mean and spread"
        " stayed as they are."
    )
