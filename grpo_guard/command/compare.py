"""Compare runs: python scripts/compare.py RUN [RUN ...] [--out DIR] [--help]"""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Sequence
from pathlib import Path

from grpo_guard import report
from grpo_guard.console import cli
from grpo_guard.report.claims import judge_claims
from grpo_guard.report.runs import Run
from grpo_guard.report.summary import summarise

EPILOG = """\
examples:
  python scripts/compare.py runs/2026-01-31/12-00-00_pickscore_guard_seed0
  python scripts/compare.py runs/vanilla runs/guard --out report
  python scripts/compare.py 'runs/2026-01-31/*_seed?'

Runs may still be training. The page, index.html, needs no network and no other file; its path is
printed last. Its figures are also written as PNG into figures/ beside it. The exit status is 0, or
2 if an argument cannot be used."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, write the page and print its path."""
    args = parser().parse_args(arguments)
    with cli.exit_on_mistake():
        runs = report.read_runs(expand_patterns(args.runs))
        print(format_table(runs), flush=True)
        print(report.write_page(runs, args.out or default_folder(runs)))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    words = "Compare run folders: print a short table and write a page with tables and figures."
    line = cli.make_parser(words, EPILOG)
    line.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run folder, or a quoted glob pattern; the first run is the reference",
    )
    line.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: compare/ beside the runs)"
    )
    return line


def expand_patterns(patterns: Sequence[str]) -> list[Path]:
    """Return the folders that exist or match a pattern.

    A pattern without a match is kept, so that reading it fails with its name in the message.
    """
    paths = []
    for pattern in patterns:
        is_path = Path(pattern).exists()
        paths += [pattern] if is_path else sorted(glob.glob(pattern)) or [pattern]
    return [Path(path) for path in paths]


def default_folder(runs: Sequence[Run]) -> Path:
    """Return `compare/` in the common parent folder of the runs."""
    return Path(os.path.commonpath([run.folder.parent for run in runs])) / "compare"


def format_table(runs: Sequence[Run]) -> str:
    """Return the summary and the verdicts as plain text, in aligned columns."""
    rows = [["", *(run.label for run in runs)]]
    rows += [[name, *values] for section in summarise(runs) for name, values in section.rows]
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *values in rows:
        cells = [value.rjust(width) for value, width in zip(values, others, strict=True)]
        lines.append("  ".join([name.ljust(first), *cells]))
    verdicts = [f"{claim.verdict:<14}{claim.rule.title}" for claim in judge_claims(runs)]
    return "\n".join([*lines, "", *verdicts, ""])


if __name__ == "__main__":
    main()
