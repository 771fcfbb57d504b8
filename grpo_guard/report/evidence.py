"""The evidence of a set of arms for and against a claim."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

from grpo_guard.report.arms import Arm, cautions, seed_of
from grpo_guard.report.comparisons import ArmChange, Comparison, margin_of
from grpo_guard.report.findings import Finding
from grpo_guard.report.notation import format_interval
from grpo_guard.report.runs import Run
from grpo_guard.report.statistics import MIN_SEEDS, Verdict, judge
from grpo_guard.schema import record

FEW = 3
"""Exceptions that are named one by one."""


@record
class Measured:
    """A set of arms with what was measured of it."""

    arms: tuple[Arm, ...]
    """The arms, with the runs that are compared."""
    changes: tuple[ArmChange, ...]
    """What training changed in every arm."""
    comparisons: tuple[Comparison, ...]
    """The reference against every other arm."""


@record
class Evidence:
    """The findings of a claim on the runs of one arm, or on the pairs of two."""

    group: str
    """Name of the arm or arms."""
    unit: str
    """What a finding is about: "run", "pair" or "arm"."""
    findings: tuple[Finding, ...]
    """The findings."""
    members: tuple[str, ...]
    """What each finding is about, such as "seed 3"."""

    @property
    def text(self) -> str:
        """The findings in a line: a single one as it is, several by how many of them hold."""
        if len(self.findings) == 1:
            return self.findings[0].text
        decided = [finding for finding in self.findings if finding.holds is not None]
        contrary = [
            member
            for member, finding in zip(self.members, self.findings, strict=True)
            if finding.holds is False
        ]
        count = f"{len(decided) - len(contrary)} of {len(self.findings)} {self.unit}s"
        exceptions = f", not {', '.join(contrary)}" if 0 < len(contrary) <= FEW else ""
        middle = sorted(decided, key=lambda finding: finding.holds is False)
        example = middle[0].text if middle else self.findings[0].text
        return f"{self.group}: {count}{exceptions}. For example {example}"


Collect = Callable[[Measured], Sequence[Evidence]]
"""Collects the evidence for a claim."""


def by_run(judge_run: Callable[[Run], Finding], ratio: str, *, or_any: bool = False) -> Collect:
    """Judge each run that optimises this ratio; with `or_any`, every run if none does."""

    def collect(measured: Measured) -> list[Evidence]:
        arms = [arm for arm in measured.arms if arm.runs[0].ratio == ratio]
        if or_any and not arms:
            arms = list(measured.arms)
        return [
            Evidence(
                group=arm.label,
                unit="run",
                findings=tuple(judge_run(run) for run in arm.runs),
                members=tuple(f"seed {seed_of(run)}" for run in arm.runs),
            )
            for arm in arms
        ]

    return collect


def by_pair(judge_pair: Callable[[Run, Run], Finding]) -> Collect:
    """Judge each pair of a vanilla and a Guard run."""

    def collect(measured: Measured) -> list[Evidence]:
        evidence = []
        for vanilla, guard in product(*(_arms_of(measured, v) for v in ("vanilla", "guard"))):
            pairs = list(product(vanilla.runs, guard.runs))
            evidence.append(
                Evidence(
                    group=f"{vanilla.label} and {guard.label}",
                    unit="pair",
                    findings=tuple(judge_pair(*pair) for pair in pairs),
                    members=tuple(f"seeds {seed_of(a)} and {seed_of(b)}" for a, b in pairs),
                )
            )
        return evidence

    return collect


def _arms_of(measured: Measured, variant: str) -> list[Arm]:
    return [arm for arm in measured.arms if arm.variant == variant]


def over_optimisation(measured: Measured) -> list[Evidence]:
    """Judge each arm by what training changed in its proxy and its first gold."""
    return [
        _single(change.arm.label, change.over_optimises, _describe_change(change))
        for change in measured.changes
        if change.golds
    ]


def _describe_change(change: ArmChange) -> str:
    golds = ", ".join(f"{n} {format_interval(i, signed=True)}" for n, i in change.golds.items())
    return f"{change.arm.label}: proxy {format_interval(change.proxy, signed=True)}; {golds}"


def better_at_proxy(measured: Measured) -> list[Evidence]:
    """Judge Guard's golds against vanilla's at equal proxy."""
    return [
        _single(
            f"{comparison.reference.label} and {comparison.other.label}",
            _judge_golds(comparison),
            f"{comparison.other.label} minus {comparison.reference.label} at equal proxy: "
            + ", ".join(
                f"{name} {format_interval(difference.at_proxy, signed=True)}"
                for name, difference in comparison.golds.items()
            ),
        )
        for comparison in _guard_against_vanilla(measured)
        if any(math.isfinite(gold.at_proxy.value) for gold in comparison.golds.values())
    ]


def _judge_golds(comparison: Comparison) -> Verdict:
    """Judge whether some gold is better at equal proxy and none is worse.

    The claim is about several differences. If none of them matters, no gold is better, so the claim
    does not show.
    """
    heights = {name: difference.at_proxy for name, difference in comparison.golds.items()}
    if any((h.seeds or 0) >= MIN_SEEDS and h.high < 0 for h in heights.values()):
        return "does not show"
    runs = (*comparison.reference.runs, *comparison.other.runs)
    verdicts = [
        judge(height, margin_of(name, runs), comparison.pairs) for name, height in heights.items()
    ]
    if "shows" in verdicts:
        return "shows"
    return "undecided" if "undecided" in verdicts else "does not show"


def _guard_against_vanilla(measured: Measured) -> list[Comparison]:
    return [
        comparison
        for comparison in measured.comparisons
        if (comparison.reference.variant, comparison.other.variant) == ("vanilla", "guard")
    ]


def _single(group: str, verdict: Verdict, text: str) -> Evidence:
    """Return the evidence of a verdict on whole arms."""
    holds = {"shows": True, "does not show": False}.get(verdict)
    finding = Finding(holds=holds, text=text, is_undecided=verdict == "undecided")
    return Evidence(group=group, unit="arm", findings=(finding,), members=(group,))


def caution_pairs(measured: Measured) -> tuple[str, ...]:
    """Return reasons why Guard may differ from vanilla for something else."""
    texts = [cautions(c.reference, c.other) for c in _guard_against_vanilla(measured)]
    return tuple(dict.fromkeys(text for several in texts for text in several))
