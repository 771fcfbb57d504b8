"""What the README says of the study: a table, and what it shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from grpo_guard.report.arms import Arm
from grpo_guard.report.comparisons import MARGIN
from grpo_guard.report.curves import PROXY, score_of
from grpo_guard.report.notation import typeset
from grpo_guard.report.results import SetResult
from grpo_guard.report.statistics import NO_DIFFERENCE, Interval
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


def summarize(headline: SetResult, arms: Mapping[str, Arm]) -> str:
    """Return the table of the README and its conclusion, no stronger than the intervals."""
    finished = [name for name in SHOWN if name in arms and len(arms[name].runs) >= others.SEEDS]
    by_title = {others.ARMS[arm.variant]: arm for arm in headline.settled.arms}
    by_title |= {others.ARMS[name]: arms[name] for name in finished}
    lines = [
        f"What {headline.settled.iterations[-1]} iterations on the embedded model change, with 95 %"
        " intervals over seeds and prompts. *Exact pictures* is the share of pictures that show"
        " exactly what was asked:",
        "",
        "| trained with | seeds | exact pictures | shows | proxy |",
        "|---|---|---|---|---|",
        *(_write_row(title, arm) for title, arm in by_title.items()),
        "",
        " ".join(
            (
                _conclude(headline),
                *_conclude_drift([arms.get(name) for name in others.DRIFT]),
            )
        ),
    ]
    return typeset("\n".join(lines))


def _write_row(title: str, arm: Arm) -> str:
    gold, proxy = (measure_arm(arm, score_of(score)) for score in (GOLD, PROXY))
    cells = (title, str(len(arm.runs)), write_change(gold), _judge(gold), write_change(proxy))
    return f"| {' | '.join(cells)} |"


def _judge(change: Interval) -> str:
    """Say what the interval of the main gold's change shows."""
    if change.low > 0:
        return "a rise"
    if change.high < 0:
        return "a loss"
    return f"no loss above {MARGIN}" if change.low > -MARGIN else "undecided"


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
        NO_DIFFERENCE: "Guard makes no difference that matters here",
        "does not show": "Guard does not restrain over-optimization here",
    }
    conclusion = conclusions.get(verdict, f"Whether Guard restrains it is {verdict}")
    return f"{conclusion} (difference of exact pictures {write_change(difference)})."


def _conclude_drift(shuffled: list[Arm | None]) -> Iterator[str]:
    """Say what steps without a signal do, if they lower the gold."""
    finished = [arm for arm in shuffled if arm is not None and len(arm.runs) >= others.SEEDS]
    losses = [measure_arm(arm, score_of(GOLD)) for arm in finished]
    if len(losses) == len(shuffled) and all(loss.high < 0 for loss in losses):
        yield "Shuffled advantages carry no signal: drift alone lowers the share."
