"""The results of the study of over-optimization, written into its page from the committed runs.

`make study` starts it: python scripts/pages/study.py [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from grpo_guard.report import statistics
from grpo_guard.report.arms import Arm
from grpo_guard.report.comparisons import MARGIN, Comparison, Difference, Settled, replicate
from grpo_guard.report.curves import PROXY, Curve, score_of
from grpo_guard.report.notation import count_of, format_interval, typeset
from grpo_guard.report.reading import read_runs
from grpo_guard.report.results import SetResult, analyse_runs
from grpo_guard.report.runs import Run
from grpo_guard.report.statistics import Interval, Verdict, judge, seeds_to_decide

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "docs" / "study" / "over_optimization_runs"
PAGE = ROOT / "docs" / "study" / "over_optimization.md"
README = ROOT / "README.md"
BEGIN = "<!-- from `make study` -->\n"
END = "<!-- end -->\n"
GOLD = "exact"
"""The main gold of the protocol."""
PICTURES = 16
"""Pictures of an evaluation that a run keeps."""
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
FAULTS = {
    "things that are too many": r"(?P<found>\d+) instead of (?P<asked>\d+)|things? too many",
    "things that are missing": r"(?P<found>\d+) instead of (?P<asked>\d+)|^no ",
    "things in a wrong place": r" is not (left|right|above|below)",
    "words that are not written": r" is not written",
}
"""Patterns of the notes of what is wrong with a picture, by their name in the table."""

TRAINING_SCORES = {
    "proxy, training captions": "eval/train/proxy/pickscore",
    "exact, training captions": "eval/train/gold/exact",
}
"""Metric keys of the scores of training captions, by their name in the table."""


def main() -> None:
    """Write the results, or check that those in the page are these."""
    parser = argparse.ArgumentParser(description="Write the results of the study into its page.")
    parser.add_argument("--check", action="store_true", help="only say whether they are up to date")
    only_check = parser.parse_args().check
    result = analyse_headline()
    updated = {
        PAGE: insert(PAGE.read_text(encoding="utf-8"), describe_results(result)),
        README: insert(README.read_text(encoding="utf-8"), summarize(result)),
    }
    stale = [path for path, text in updated.items() if path.read_text(encoding="utf-8") != text]
    if only_check:
        names = ", ".join(path.name for path in stale)
        sys.exit(f"{names}: the results are not those of the runs; run make study" if stale else 0)
    for path in stale:
        path.write_text(updated[path], encoding="utf-8")
    sys.stdout.write(f"{summarize(result)}\n")


def analyse_headline() -> SetResult:
    """Analyse the committed runs; all have the same backbone and reward."""
    (result,) = analyse_runs(read_runs(sorted(path for path in RUNS.iterdir() if path.is_dir())))
    return result


def insert(page: str, text: str) -> str:
    """Return the page with the text between the two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{text}\n\n{END}{after}"


def describe_results(result: SetResult) -> str:
    """Return the results as Markdown: the answers, and the change of every score."""
    guard = _comparison(result)
    lines = [
        f"After {_seeds(guard)} of the {SEEDS} of the headline:",
        "",
        *_explain_waiting(guard),
        "| question | verdict | evidence |",
        "|---|---|---|",
        *_answer(result, guard),
        "",
        "Change from before training to iteration"
        f" {result.settled.iterations[-1]}, with 95 % intervals over seeds and prompts:",
        "",
        *_table(result),
        *_describe_faults(result.settled.arms, int(result.settled.iterations[-1])),
    ]
    return typeset("\n".join(lines))


def _explain_waiting(guard: Comparison) -> list[str]:
    if guard.pairs >= SEEDS:
        return []
    words = (
        f"Nothing is judged before all {SEEDS} seeds are finished: an interval that is looked at"
        " again and again leaves out 0 by chance more often than it says."
    )
    return [words, ""]


def _wait_for_all(verdict: Verdict, guard: Comparison) -> Verdict:
    """Return the verdict, which is open until all seeds of the protocol are finished."""
    return verdict if guard.pairs >= SEEDS else "undecided"


def summarize(result: SetResult) -> str:
    """Return the sentence that the README says; it is no stronger than its interval."""
    guard = _comparison(result)
    changes = {arm.variant: result.change_of(arm) for arm in (guard.reference, guard.other)}
    vanilla, other = changes["vanilla"], changes["guard"]
    assert vanilla is not None
    assert other is not None
    difference = guard.golds[GOLD]
    return typeset(
        f"On the embedded model ({_seeds(guard)} of {SEEDS},"
        f" {result.settled.iterations[-1]} iterations),"
        " training changes the share of pictures that show exactly what was asked by"
        f" {_signed(vanilla.golds[GOLD])} with vanilla and by {_signed(other.golds[GOLD])} with"
        f" Guard, and the proxy by {_signed(vanilla.proxy)} and {_signed(other.proxy)}. The"
        f" difference in exact pictures is {_signed(difference.at_end)}:"
        f" {_conclude(difference, guard, other.over_optimises)}."
    )


def _conclude(difference: Difference, guard: Comparison, guard_over_optimises: Verdict) -> str:
    limits = " and does not prevent it" if guard_over_optimises == "shows" else ""
    return {
        "shows": f"here Guard restrains over-optimization{limits}",
        "does not show": "here Guard does not restrain over-optimization",
        "undecided": _undecided(difference.at_end, guard),
    }[_wait_for_all(difference.verdict, guard)]


def _comparison(result: SetResult) -> Comparison:
    """Return the headline: vanilla against Guard."""
    (guard,) = (c for c in result.comparisons if c.other.label == "guard")
    return guard


def _seeds(comparison: Comparison) -> str:
    return count_of(comparison.pairs, "seed", "seeds")


def _signed(interval: Interval) -> str:
    return format_interval(interval, signed=True)


def _answer(result: SetResult, guard: Comparison) -> Iterator[str]:
    """Return the rows of the table of answers."""
    for arm in (guard.reference, guard.other):
        change = result.change_of(arm)
        assert change is not None
        evidence = f"proxy {_signed(change.proxy)}, {GOLD} {_signed(change.golds[GOLD])}"
        verdict = _wait_for_all(change.over_optimises, guard)
        yield f"| Does {arm.label} over-optimise? | {verdict} | {evidence} |"
    difference = guard.golds[GOLD]
    places = {
        "after equal images (main test)": difference.at_end,
        "at equal proxy": difference.at_proxy,
        "at equal distance from the base": difference.at_distance,
    }
    for place, interval in places.items():
        verdict = _wait_for_all(judge(interval, MARGIN, guard.pairs), guard)
        if verdict == "undecided":
            verdict = _undecided(interval, guard)
        yield f"| Is Guard's {GOLD} higher {place}? | {verdict} | {_signed(interval)} |"
    yield _answer_early_stop(result, guard)


def _undecided(interval: Interval, guard: Comparison) -> str:
    """Say with how many seeds the answer would be known, once those of the protocol are there."""
    needed = seeds_to_decide(interval, guard.pairs, MARGIN) if guard.pairs >= SEEDS else None
    return "undecided" if needed is None else f"undecided; about {needed} seeds would decide"


def _answer_early_stop(result: SetResult, guard: Comparison) -> str:
    """Return the row for vanilla that is stopped where the learned gold is highest."""
    vanilla = result.change_of(guard.reference)
    assert vanilla is not None
    stopped = _signed(vanilla.stops[GOLD])
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
        cells = [_signed(measure(arm, curve_of, result.settled)) for arm in arms]
        yield f"| {title} | " + " | ".join(cells) + " |"


def _describe_faults(arms: Sequence[Arm], end: int) -> Iterator[str]:
    """Return what is wrong with the pictures that the committed runs keep, before and after."""
    before = [count_faults(run, 0) for arm in arms for run in arm.runs]
    after = [[count_faults(run, end) for run in arm.runs] for arm in arms]
    kept = sum(counts is not None for counts in before)
    if not kept:
        return
    yield ""
    yield (
        f"What is wrong with a picture, on average over the {PICTURES} held-out captions whose"
        f" pictures are kept, in {count_of(kept, 'run', 'runs')}:"
    )
    yield ""
    yield "| what | before training | " + " | ".join(arm.label for arm in arms) + " |"
    yield "|---|---|" + "---|" * len(arms)
    for name in FAULTS:
        cells = [_mean_count(name, counts) for counts in (before, *after)]
        yield f"| {name} | " + " | ".join(cells) + " |"


def _mean_count(name: str, runs: Sequence[Mapping[str, float] | None]) -> str:
    values = [counts[name] for counts in runs if counts is not None]
    return f"{np.mean(values):.2f}" if values else "-"


def count_faults(run: Run, iteration: int) -> dict[str, float] | None:
    """Return the faults of each kind per picture; None if the pictures are not kept."""
    file = run.folder / "samples" / f"{iteration:06d}.json"
    if not file.is_file():
        return None
    pictures = json.loads(file.read_text(encoding="utf-8"))
    notes = [note for picture in pictures for note in picture["notes"]["eval/gold/world"]]
    return {name: sum(_is_fault(note, name) for note in notes) / len(pictures) for name in FAULTS}


def _is_fault(note: str, name: str) -> bool:
    match = re.search(FAULTS[name], note)
    if match is None:
        return False
    counts = match.groupdict()
    if counts.get("found") is None:
        return True
    is_more = int(counts["found"]) > int(counts["asked"])
    return is_more == (name == "things that are too many")


def _curves() -> dict[str, Callable[[Run], Curve]]:
    held_out = {title: score_of(name) for title, name in SCORES.items()}
    training = {
        title: lambda run, key=key: _plain_curve(run, key) for title, key in TRAINING_SCORES.items()
    }
    distance = {"distance from the base, eval/kl": lambda run: _plain_curve(run, "eval/kl")}
    return held_out | training | distance


def _plain_curve(run: Run, key: str) -> Curve:
    """Return a metric as a curve whose prompts are not resampled."""
    iteration, value = run.series(key)
    return Curve(iteration=iteration, value=value, error=np.zeros(len(value)))


def measure(arm: Arm, curve_of: Callable[[Run], Curve], settled: Settled) -> Interval:
    """Measure the change of a score from before training to the last evaluation."""
    values, shared = replicate(arm, curve_of, settled.iterations)
    return statistics.estimate(values[:, :, -1] - values[:, :, 0], same_prompts=shared)


if __name__ == "__main__":
    main()
