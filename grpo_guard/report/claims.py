"""The claims of GRPO-Guard's paper, each judged by the numbers of the runs on the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from grpo_guard.report import findings
from grpo_guard.report.evidence import (
    Collect,
    Evidence,
    Measured,
    better_at_proxy,
    by_pair,
    by_run,
    caution_pairs,
    over_optimisation,
)
from grpo_guard.report.findings import CLEAR
from grpo_guard.report.statistics import Verdict
from grpo_guard.schema import record

ClaimVerdict = Verdict | Literal["not measured"]
"""A claim has no verdict for differences too small to matter: its rule says what it needs, and
such a difference is a finding that does not hold."""


@record
class Rule:
    """A claim of the paper and how it is judged."""

    title: str
    """The claim."""
    paper: str
    """What the paper measured."""
    words: str
    """The rule in words."""
    collect: Collect
    """Collects the evidence."""
    some: bool = False
    """Whether one finding that holds is enough."""
    cautions: Callable[[Measured], tuple[str, ...]] = lambda measured: ()
    """What to keep in mind about the comparison of these runs."""


@record
class Claim:
    """A rule that has been judged on some runs."""

    rule: Rule
    """The rule."""
    evidence: tuple[Evidence, ...]
    """The evidence, one item for every arm or pair of arms."""
    cautions: tuple[str, ...]
    """What to keep in mind about these runs."""

    @property
    def verdict(self) -> ClaimVerdict:
        """The findings in one word.

        All hold: shows. At most half hold: does not show. Between them: undecided. Findings that
        were measured and are open may come out either way: the verdict is the one that they cannot
        change, else undecided.
        """
        every = [finding for item in self.evidence for finding in item.findings]
        decided = [finding.holds for finding in every if finding.holds is not None]
        holding, unsettled = sum(decided), sum(finding.is_undecided for finding in every)
        if not decided and not unsettled:
            return "not measured"
        if self.rule.some:
            if holding:
                return "shows"
            return "undecided" if unsettled else "does not show"
        if holding == len(decided) + unsettled:
            return "shows"
        most = holding + unsettled
        return "does not show" if 2 * most <= len(decided) + unsettled else "undecided"


def judge_claims(measured: Measured) -> tuple[Claim, ...]:
    """Judge every rule on a set of arms."""
    return tuple(
        Claim(
            rule=rule,
            evidence=tuple(item for item in rule.collect(measured) if item.findings),
            cautions=rule.cautions(measured),
        )
        for rule in RULES
    )


RULES: tuple[Rule, ...] = (
    Rule(
        title="The raw ratio's mean lies below 1 and falls towards low noise",
        paper="0.99992, 0.99976, 0.99886 at steps 6, 7, 8 (SD3.5-M, vanilla)",
        words="the mean at the last trained step is below 1, and below that at the first, each by"
        f" more than {CLEAR:g} standard errors",
        collect=by_run(findings.shifts_left, "raw", or_any=True),
    ),
    Rule(
        title="The raw ratio's spread grows towards low noise",
        paper="standard deviation 1.5e-4, 5e-4, 2.65e-3 at steps 6, 7, 8",
        words="the spread at the last trained step is at least twice that at the first, and at most"
        " one other step has a larger one",
        collect=by_run(findings.spreads_late, "raw", or_any=True),
    ),
    Rule(
        title="RatioNorm brings the mean back to 1 on every step",
        paper="1.0000 at every step with Guard",
        words="every step's mean lies within a tenth of its spread, or within"
        f" {CLEAR:g} standard errors, of 1",
        collect=by_run(findings.is_centred, "norm", or_any=True),
    ),
    Rule(
        title="RatioNorm makes the spread more alike across steps",
        paper="shown without a number; in theory the remaining spread grows with the step's length"
        " dt",
        words="the largest over the smallest spread is at most two thirds of the raw ratio's in the"
        " same run",
        collect=by_run(findings.is_narrower, "norm", or_any=True),
    ),
    Rule(
        title="With the raw ratio the upper clip lies idle while the lower one fires",
        paper="upper clip exactly 0, the lower one almost only at the last trained step",
        words="the share of the rows with A < 0 below the range is at least 1 %, and the share of"
        " the rows with A > 0 above it is at most a tenth of that",
        collect=by_run(findings.leaves_upper_idle, "raw"),
    ),
    Rule(
        title="Guard clips both sides about equally",
        paper="about equal on all steps",
        words="at least 1 % of the rows are clipped, and |upper - lower| summed over steps is at"
        " most a fifth of upper + lower",
        collect=by_run(findings.clips_evenly, "norm"),
    ),
    Rule(
        title="Guard evens the gradient out over the steps",
        paper="largest over smallest: about 20x with vanilla, about 2.5x with Guard",
        words="Guard's largest over smallest share is at most half of vanilla's, for every pair of"
        " runs",
        collect=by_pair(findings.evens_gradient),
    ),
    Rule(
        title="Training over-optimises: the proxy rises while a gold falls",
        paper="images get worse by other rewards and to the eye while the proxy still rises",
        words="in some arm the interval of the proxy's change lies above 0 and that of the first"
        " gold's below 0",
        collect=over_optimisation,
        some=True,
    ),
    Rule(
        title="At the same proxy, Guard's gold is better",
        paper="gold over the base model's, from vanilla to Guard: .84 to .89 (GenEval), .88 to .99"
        " (text)",
        words="the interval of some gold's difference, averaged over the proxies that both runs of"
        " a pair passed, lies above 0, and that of none below 0",
        collect=better_at_proxy,
        cautions=caution_pairs,
    ),
)
"""The claims in the order of the paper's argument."""
