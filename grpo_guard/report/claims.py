"""What GRPO-Guard's paper claims, each judged by the numbers of the runs at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from grpo_guard.report import arms, findings
from grpo_guard.report.findings import CLEAR, Finding
from grpo_guard.report.runs import Run
from grpo_guard.types import record

Verdict = Literal["shows", "does not show", "not measured"]

Cases = Callable[[Sequence[Run]], Sequence[tuple[Run, ...]]]
"""Picks the runs that a rule is judged on: one finding for every tuple."""


@record
class Rule:
    """A sentence of the paper's, what the paper measured, and how it is judged here: in words, on which runs, by what.

    A claim is shown where every finding that can tell holds it (any, with `some`).
    """

    title: str
    paper: str
    words: str
    cases: Cases
    judge: Callable[..., Finding]
    some: bool = False
    cautions: Callable[[Sequence[Run]], tuple[str, ...]] = lambda runs: ()


@record
class Claim:
    """A rule, what it found in some runs, and what to keep in mind there."""

    rule: Rule
    findings: tuple[Finding, ...]
    cautions: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """What the findings amount to."""
        told = [finding.holds for finding in self.findings if finding.holds is not None]
        if not told:
            return "not measured"
        return "shows" if (any(told) if self.rule.some else all(told)) else "does not show"


def claims(runs: Sequence[Run]) -> tuple[Claim, ...]:
    """Every rule, applied to some runs."""
    return tuple(
        Claim(
            rule=rule,
            findings=tuple(rule.judge(*case) for case in rule.cases(runs)),
            cautions=rule.cautions(runs),
        )
        for rule in RULES
    )


def each(runs: Sequence[Run]) -> list[tuple[Run]]:
    """Every run by itself."""
    return [(run,) for run in runs]


def together(runs: Sequence[Run]) -> list[tuple[Run, ...]]:
    """All runs at once."""
    return [tuple(runs)]


def optimising(ratio: str) -> Cases:
    """Each run that optimises a ratio."""
    return lambda runs: each([run for run in runs if run.ratio == ratio])


def preferring(ratio: str) -> Cases:
    """Each run that optimises a ratio, or every run where none does: all measure it."""
    return lambda runs: optimising(ratio)(runs) or each(runs)


RULES: tuple[Rule, ...] = (
    Rule(
        title="The raw ratio's mean lies below 1 and falls towards low noise",
        paper="0.99992, 0.99976, 0.99886 at steps 6, 7, 8 (SD3.5-M, vanilla)",
        words=f"the last trained step is below 1, and below the first, each by more than {CLEAR:g} standard errors",
        cases=preferring("raw"),
        judge=findings.shifts_left,
    ),
    Rule(
        title="The raw ratio's spread grows towards low noise",
        paper="standard deviation 1.5e-4, 5e-4, 2.65e-3 at steps 6, 7, 8",
        words="the last trained step spreads at least twice as widely as the first, and no step but one more widely",
        cases=preferring("raw"),
        judge=findings.spreads_late,
    ),
    Rule(
        title="RatioNorm brings the mean back to 1 on every step",
        paper="1.0000 at every step with Guard",
        words=f"every step's mean lies within a tenth of its spread, or within {CLEAR:g} standard errors, of 1",
        cases=preferring("norm"),
        judge=findings.is_centred,
    ),
    Rule(
        title="RatioNorm makes the spread more alike across steps",
        paper="shown, without a number; in theory what remains grows as the step's length dt",
        words="largest over smallest spread is at most two thirds of the raw ratio's in the same run",
        cases=preferring("norm"),
        judge=findings.is_narrower,
    ),
    Rule(
        title="With the raw ratio the upper clip lies idle while the lower one fires",
        paper="upper clip exactly 0, the lower one almost only at the last trained step",
        words="at least 1 % of the rows with A < 0 lie below the range, at most a tenth as many of A > 0 above it",
        cases=optimising("raw"),
        judge=findings.leaves_upper_idle,
    ),
    Rule(
        title="Guard clips both sides about equally",
        paper="about equal on all steps",
        words="at least 1 % of the rows clipped; |upper - lower| summed over steps at most a fifth of upper + lower",
        cases=optimising("norm"),
        judge=findings.clips_evenly,
    ),
    Rule(
        title="Guard evens the gradient out over the steps",
        paper="largest over smallest: about 20x with vanilla, about 2.5x with Guard",
        words="Guard's largest over smallest share is at most half of vanilla's, for every pair of runs",
        cases=arms.pairs,
        judge=findings.evens_gradient,
    ),
    Rule(
        title="Training over-optimises: the proxy rises while a gold falls",
        paper="images get worse by other rewards and to the eye while the proxy still rises",
        words=f"in some run the proxy's trend is up and a gold's down, each by more than {CLEAR:g} standard errors"
        " (least squares over four or more evaluations)",
        cases=each,
        judge=findings.over_optimises,
        some=True,
        cautions=lambda runs: (
            "Several golds are looked at, so that one falls by chance is likelier than its error says.",
        ),
    ),
    Rule(
        title="At the same proxy, Guard's gold is better",
        paper="gold over the base model's: .84 to .89 (GenEval), .88 to .99 (text) from vanilla to Guard",
        words=f"some gold is better by more than {CLEAR:g} standard errors, averaged over the proxies that all these"
        " runs passed, and none is worse by as much",
        cases=together,
        judge=findings.is_better,
        cautions=arms.cautions,
    ),
)
"""What the paper claims, in the order of its argument."""
