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
from study import lenient
from study.headline import SEEDS, find_guard
from study.measures import GOLD, measure_arm, write_change, write_verdict

SHOWN = (
    "vanilla_third_rate",
    "guard_third_rate",
    "vanilla_kl_04",
    "vanilla_shuffled",
    "vanilla_geneval",
    "guard_geneval",
)
"""Arms beside the headline's that the README has, once all of their seeds are finished."""


def summarize(headline: SetResult, arms: Mapping[str, Arm]) -> str:
    """Return the table of the README and its conclusion, no stronger than the intervals."""
    finished = [name for name in SHOWN if name in arms and len(arms[name].runs) >= others.SEEDS]
    by_title = {others.ARMS[arm.variant]: arm for arm in headline.settled.arms}
    by_title |= {others.ARMS[name]: arms[name] for name in finished}
    lines = [
        f"What {headline.settled.iterations[-1]} iterations change on the embedded model, with 95 %"
        " intervals over seeds and prompts. *Exact pictures* is the share that shows exactly what"
        " was asked:",
        "",
        "| trained with | seeds | exact pictures | shows | proxy |",
        "|---|---|---|---|---|",
        *(_write_row(title, arm) for title, arm in by_title.items()),
        "",
        " ".join(
            (
                _conclude(headline),
                *_conclude_lenient(arms),
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
        "shows": f"With PickScore, Guard restrains over-optimization{limits}",
        NO_DIFFERENCE: "With PickScore, Guard makes no difference that matters",
        "does not show": "With PickScore, Guard does not restrain over-optimization",
    }
    conclusion = conclusions.get(verdict, f"Whether Guard restrains it is {verdict}")
    return f"{conclusion} (exact pictures {write_change(difference)} against vanilla)."


def _conclude_lenient(arms: Mapping[str, Arm]) -> Iterator[str]:
    """Say whether Guard keeps more of the gold with a proxy that does not punish what is too much.

    Its verdict is the one of the study's page.
    """
    if not all(name in arms for name in lenient.ARMS):
        return
    difference, pairs = others.compare_by_gold(*(arms[name] for name in lenient.ARMS))
    verdict = write_verdict(difference.at_end, pairs, others.SEEDS)
    conclusions = {
        "shows": "it restrains it too",
        NO_DIFFERENCE: "it makes no difference that matters",
        "does not show": "no restraint shows",
    }
    conclusion = conclusions.get(verdict, "this is undecided")
    yield f"With GenEval's lenient accuracy, {conclusion} ({write_change(difference.at_end)})."


def _conclude_drift(shuffled: list[Arm | None]) -> Iterator[str]:
    """Say what steps without a signal do, if they lower the gold."""
    finished = [arm for arm in shuffled if arm is not None and len(arm.runs) >= others.SEEDS]
    losses = [measure_arm(arm, score_of(GOLD)) for arm in finished]
    if len(losses) == len(shuffled) and all(loss.high < 0 for loss in losses):
        yield "Shuffled advantages carry no signal: drift alone lowers the share."
