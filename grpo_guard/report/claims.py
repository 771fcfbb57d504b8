"""The claims of GRPO-Guard's paper, each judged by the numbers of the runs on the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from grpo_guard.report import arms, findings
from grpo_guard.report.findings import CLEAR, Finding
from grpo_guard.report.runs import Run
from grpo_guard.schema import record

ClaimVerdict = Literal["shows", "does not show", "not measured"]

Cases = Callable[[Sequence[Run]], Sequence[tuple[Run, ...]]]
"""Picks the runs that a rule is judged on: there is one finding for every tuple."""


@record
class Rule:
    """A claim of the paper and how it is judged.

    A claim is shown if it holds in every finding that decides it, or with `some` in any of them.
    """

    title: str
    """The claim."""
    paper: str
    """What the paper measured."""
    words: str
    """The rule in words."""
    cases: Cases
    """Picks the runs that it is judged on."""
    judge: Callable[..., Finding]
    """Judges one case; takes the runs of the case as arguments."""
    some: bool = False
    """Whether one finding that holds is enough."""
    cautions: Callable[[Sequence[Run]], tuple[str, ...]] = lambda runs: ()
    """What to keep in mind about the comparison of these runs."""


@record
class Claim:
    """A rule that has been judged on some runs."""

    rule: Rule
    """The rule."""
    findings: tuple[Finding, ...]
    """One finding for every case."""
    cautions: tuple[str, ...]
    """What to keep in mind about these runs."""

    @property
    def verdict(self) -> ClaimVerdict:
        """The findings in one word."""
        decided = [finding.holds for finding in self.findings if finding.holds is not None]
        if not decided:
            return "not measured"
        holds = any(decided) if self.rule.some else all(decided)
        return "shows" if holds else "does not show"


def judge_claims(runs: Sequence[Run]) -> tuple[Claim, ...]:
    """Judge every rule on some runs."""
    return tuple(
        Claim(
            rule=rule,
            findings=tuple(rule.judge(*case) for case in rule.cases(runs)),
            cautions=rule.cautions(runs),
        )
        for rule in RULES
    )


def each_alone(runs: Sequence[Run]) -> list[tuple[Run]]:
    """Take every run by itself."""
    return [(run,) for run in runs]


def all_together(runs: Sequence[Run]) -> list[tuple[Run, ...]]:
    """Take all runs as one case."""
    return [tuple(runs)]


def optimising(ratio: str) -> Cases:
    """Take each run that optimises this ratio."""
    return lambda runs: each_alone([run for run in runs if run.ratio == ratio])


def optimising_if_any(ratio: str) -> Cases:
    """Take each run that optimises this ratio, or every run if none does: all runs measure it."""
    return lambda runs: optimising(ratio)(runs) or each_alone(runs)


def _caution_many_golds(runs: Sequence[Run]) -> tuple[str, ...]:
    text = "Several golds are tested, so one falls by chance more often than its error suggests."
    return (text,)


RULES: tuple[Rule, ...] = (
    Rule(
        title="The raw ratio's mean lies below 1 and falls towards low noise",
        paper="0.99992, 0.99976, 0.99886 at steps 6, 7, 8 (SD3.5-M, vanilla)",
        words="the mean at the last trained step is below 1, and below that at the first, each by"
        f" more than {CLEAR:g} standard errors",
        cases=optimising_if_any("raw"),
        judge=findings.shifts_left,
    ),
    Rule(
        title="The raw ratio's spread grows towards low noise",
        paper="standard deviation 1.5e-4, 5e-4, 2.65e-3 at steps 6, 7, 8",
        words="the spread at the last trained step is at least twice that at the first, and at most"
        " one other step has a larger one",
        cases=optimising_if_any("raw"),
        judge=findings.spreads_late,
    ),
    Rule(
        title="RatioNorm brings the mean back to 1 on every step",
        paper="1.0000 at every step with Guard",
        words="every step's mean lies within a tenth of its spread, or within"
        f" {CLEAR:g} standard errors, of 1",
        cases=optimising_if_any("norm"),
        judge=findings.is_centred,
    ),
    Rule(
        title="RatioNorm makes the spread more alike across steps",
        paper="shown without a number; in theory the remaining spread grows with the step's length"
        " dt",
        words="the largest over the smallest spread is at most two thirds of the raw ratio's in the"
        " same run",
        cases=optimising_if_any("norm"),
        judge=findings.is_narrower,
    ),
    Rule(
        title="With the raw ratio the upper clip lies idle while the lower one fires",
        paper="upper clip exactly 0, the lower one almost only at the last trained step",
        words="the share of the rows with A < 0 below the range is at least 1 %, and the share of"
        " the rows with A > 0 above it is at most a tenth of that",
        cases=optimising("raw"),
        judge=findings.leaves_upper_idle,
    ),
    Rule(
        title="Guard clips both sides about equally",
        paper="about equal on all steps",
        words="at least 1 % of the rows are clipped, and |upper - lower| summed over steps is at"
        " most a fifth of upper + lower",
        cases=optimising("norm"),
        judge=findings.clips_evenly,
    ),
    Rule(
        title="Guard evens the gradient out over the steps",
        paper="largest over smallest: about 20x with vanilla, about 2.5x with Guard",
        words="Guard's largest over smallest share is at most half of vanilla's, for every pair of"
        " runs",
        cases=arms.pair_arms,
        judge=findings.evens_gradient,
    ),
    Rule(
        title="Training over-optimises: the proxy rises while a gold falls",
        paper="images get worse by other rewards and to the eye while the proxy still rises",
        words="in some run the proxy's trend is up and a gold's down, each by more than"
        f" {CLEAR:g} standard errors (least squares over four or more evaluations)",
        cases=each_alone,
        judge=findings.over_optimises,
        some=True,
        cautions=_caution_many_golds,
    ),
    Rule(
        title="At the same proxy, Guard's gold is better",
        paper="gold over the base model's, from vanilla to Guard: .84 to .89 (GenEval), .88 to .99"
        " (text)",
        words=f"some gold is better by more than {CLEAR:g} standard errors, averaged over the"
        " proxies that all these runs passed, and none is worse by as much",
        cases=all_together,
        judge=findings.is_better,
        cautions=arms.cautions,
    ),
)
"""The claims in the order of the paper's argument."""
