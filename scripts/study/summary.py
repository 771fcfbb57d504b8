"""What the README says of the study: a table, and what it shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from grpo_guard.report.arms import Arm
from grpo_guard.report.comparisons import MARGIN
from grpo_guard.report.curves import PROXY, score_of
from grpo_guard.report.notation import typeset
from grpo_guard.report.results import SetResult
from study import arms as others
from study.headline import SEEDS, find_guard
from study.measures import GOLD, measure_arm, write_change, write_verdict

SHOWN = (
    "vanilla_third_rate",
    "guard_third_rate",
    "vanilla_kl_01",
    "vanilla_kl_04",
    "vanilla_shuffled",
    "guard_shuffled",
)
"""Arms beside the headline's that the README has, once all of their seeds are finished."""

REMEDIES = ("vanilla_third_rate", "guard_third_rate", "vanilla_kl_01", "vanilla_kl_04")
"""Arms that may keep the gold, or gain some."""


def summarize(headline: SetResult, arms: Mapping[str, Arm]) -> str:
    """Return the table of the README and its conclusion, no stronger than the intervals."""
    finished = [name for name in SHOWN if name in arms and len(arms[name].runs) >= others.SEEDS]
    by_title = {others.ARMS[arm.variant]: arm for arm in headline.settled.arms}
    by_title |= {others.ARMS[name]: arms[name] for name in finished}
    lines = [
        f"On the embedded model, {headline.settled.iterations[-1]} iterations change the share of"
        " pictures that show exactly what was asked, and the proxy, by (95 % intervals over seeds"
        " and prompts):",
        "",
        "| trained with | seeds | exact pictures | proxy |",
        "|---|---|---|---|",
        *(_write_row(title, arm) for title, arm in by_title.items()),
        "",
        " ".join(
            (
                _conclude(headline),
                *_conclude_remedies({name: arms[name] for name in finished}),
                *_conclude_drift([arms.get(name) for name in others.DRIFT]),
            )
        ),
    ]
    return typeset("\n".join(lines))


def _write_row(title: str, arm: Arm) -> str:
    gold, proxy = (write_change(measure_arm(arm, score_of(score))) for score in (GOLD, PROXY))
    return f"| {title} | {len(arm.runs)} | {gold} | {proxy} |"


def _conclude(headline: SetResult) -> str:
    """Say whether Guard restrains over-optimization, and whether it prevents it."""
    guard = find_guard(headline)
    change = headline.change_of(guard.other)
    assert change is not None
    limits = " and does not prevent it" if change.over_optimises == "shows" else ""
    difference = guard.golds[GOLD].at_end
    verdict = write_verdict(difference, guard.pairs, SEEDS)
    conclusions = {
        "shows": f"Guard restrains over-optimization here{limits}",
        "does not show": "Guard does not restrain over-optimization here",
    }
    conclusion = conclusions.get(verdict, f"Whether Guard restrains it is {verdict}")
    return f"{conclusion} (difference of exact pictures {write_change(difference)})."


def _conclude_remedies(finished: Mapping[str, Arm]) -> Iterator[str]:
    """Name the remedies that gain some of the gold, and those that lose less than the margin."""
    changes = {
        name: measure_arm(finished[name], score_of(GOLD)) for name in REMEDIES if name in finished
    }
    gaining = [name for name, change in changes.items() if change.low > 0]
    keeping = [name for name, change in changes.items() if -MARGIN < change.low <= 0]
    if gaining:
        yield f"The share rises with: {_join_titles(gaining)}."
    if keeping:
        yield f"Less than {MARGIN} is lost with: {_join_titles(keeping)}."


def _join_titles(names: list[str]) -> str:
    return "; ".join(others.ARMS[name] for name in names)


def _conclude_drift(shuffled: list[Arm | None]) -> Iterator[str]:
    """Say what steps without a signal do, if they lower the gold."""
    finished = [arm for arm in shuffled if arm is not None and len(arm.runs) >= others.SEEDS]
    losses = [measure_arm(arm, score_of(GOLD)) for arm in finished]
    if len(losses) == len(shuffled) and all(loss.high < 0 for loss in losses):
        yield "Shuffled advantages carry no signal: drift alone lowers the share."
