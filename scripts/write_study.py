"""The results of the study of over-optimization, written into its page and the README.

The figures of the arms with other proxies are drawn too.

`make study` starts it: python scripts/write_study.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from grpo_guard.report.arms import Arm
from grpo_guard.report.results import SetResult
from study.arms import analyse_arms, describe_arms
from study.headline import analyse_headline, describe_results
from study.lenient import draw_lenient
from study.proxies import draw_proxies
from study.summary import summarize

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "study" / "over_optimization.md"
README = ROOT / "README.md"
PROXIES_FIGURE = ROOT / "docs" / "study" / "proxies.png"
"""Figure of the arms with worse proxies."""
LENIENT_FIGURE = ROOT / "docs" / "study" / "geneval.png"
"""Pictures of the arms with GenEval's lenient measure."""
HEADLINE_RUNS = ROOT / "docs" / "study" / "over_optimization_runs"
"""Runs of the headline, a folder each."""
OTHER_RUNS = ROOT / "docs" / "study" / "other_arms"
"""Runs of the controls, remedies and ablations, a folder each."""
BEGIN = "<!-- from `make study` -->\n"
END = "<!-- end -->\n"


def main() -> None:
    """Write the results, or check that those in the page are these."""
    parser = argparse.ArgumentParser(description="Write the results of the study into its page.")
    parser.add_argument("--check", action="store_true", help="only say whether they are up to date")
    only_check = parser.parse_args().check
    headline, arms = analyse_study()
    page, summary = compose_results(headline, arms)
    updated = {
        PAGE: insert(PAGE.read_text(encoding="utf-8"), page),
        README: insert(README.read_text(encoding="utf-8"), summary),
    }
    stale = [path for path, text in updated.items() if path.read_text(encoding="utf-8") != text]
    if only_check:
        names = ", ".join(path.name for path in stale)
        sys.exit(f"{names}: the results are not those of the runs; run make study" if stale else 0)
    for path in stale:
        path.write_text(updated[path], encoding="utf-8")
    draw_proxies(arms, PROXIES_FIGURE)
    draw_lenient(arms, LENIENT_FIGURE)
    sys.stdout.write(f"{summary}\n")


def analyse_study() -> tuple[SetResult, dict[str, Arm]]:
    """Return the headline's results, and all arms by the names of their folders."""
    headline = analyse_headline(HEADLINE_RUNS)
    return headline, analyse_arms(headline.arm_set.runs, OTHER_RUNS)


def compose_results(headline: SetResult, arms: Mapping[str, Arm]) -> tuple[str, str]:
    """Return the results for the page, and the table for the README."""
    page = f"{describe_results(headline)}\n\n{describe_arms(arms)}"
    return page, summarize(headline, arms)


def insert(page: str, text: str) -> str:
    """Return the page with the text between the two marks; raises ValueError without both."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page lacks {BEGIN.strip()} or, after it, {END.strip()}; restore it")
    return f"{before}{BEGIN}\n{text}\n\n{END}{after}"


if __name__ == "__main__":
    main()
