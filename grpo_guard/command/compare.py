"""Compare runs: python scripts/compare.py RUN [RUN ...] [--out DIR] [--table FORMAT] [--help]"""

from __future__ import annotations

import argparse
import glob
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from grpo_guard.console import cli
from grpo_guard.report import analyse_runs, read_readable_runs, write_page
from grpo_guard.report.runs import Run
from grpo_guard.report.table import FORMATS, format_terminal
from grpo_guard.schema import require

EPILOG = """\
examples:
  python scripts/compare.py runs/2026-01-31/12-00-00_pickscore_guard_seed0
  python scripts/compare.py runs/vanilla runs/guard --out report
  python scripts/compare.py 'runs/2026-01-31/*_seed?' --watch
  python scripts/compare.py 'runs/study/*' --table latex > table.tex

Runs that differ in their seed alone are one arm. Runs may still be training. A folder of the list
that holds no run, or a damaged one, is left out with a line. The page, index.html, needs no
network, and its path is printed last. Its figures are also written as SVG, PNG and CSV into
figures/ beside it. The exit status is 0, or 2 if an argument cannot be used."""
WATCH_SECONDS = 60


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, write the page and print its path."""
    args = parser().parse_args(arguments)
    with cli.exit_on_mistake():
        if args.table:
            runs, left_out = read_named_runs(args.runs)
            warn(left_out)
            print(FORMATS[args.table](analyse_runs(runs)), end="")
        elif args.watch is not None:
            watch(args)
        else:
            compare(args)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    words = "Compare run folders: print a short table and write a page with tables and figures."
    line = cli.make_parser(words, EPILOG)
    line.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run folder, or a quoted glob pattern; vanilla, or else the first, is the reference",
    )
    line.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: compare/ beside the runs)"
    )
    line.add_argument(
        "--table",
        choices=sorted(FORMATS),
        metavar="FORMAT",
        help=f"print only the table, as {', '.join(sorted(FORMATS))}, and write no page",
    )
    line.add_argument(
        "--watch",
        type=int,
        nargs="?",
        const=WATCH_SECONDS,
        metavar="SECONDS",
        help=f"write the page again every so many seconds (default: {WATCH_SECONDS}) until all runs"
        " are finished; the page loads itself again",
    )
    return line


def compare(args: argparse.Namespace, refresh: int = 0) -> tuple[Run, ...]:
    """Print the table, write the page, print its path, and return the runs."""
    runs, left_out = read_named_runs(args.runs)
    warn(left_out)
    results = analyse_runs(runs)
    print(format_terminal(results), flush=True)
    print(write_page(results, args.out or default_folder(runs), left_out, refresh), flush=True)
    return runs


def watch(args: argparse.Namespace) -> None:
    """Compare again and again until all runs are finished; the last page stays as it is."""
    require(args.watch > 0, f"--watch={args.watch} is not positive; give a number of seconds")
    while is_unfinished(compare(args, refresh=args.watch)):
        time.sleep(args.watch)
    compare(args)


def is_unfinished(runs: Sequence[Run]) -> bool:
    """Whether any run has iterations to come."""
    return any(run.iterations < run.setting("iterations") for run in runs)


def read_named_runs(patterns: Sequence[str]) -> tuple[tuple[Run, ...], tuple[str, ...]]:
    """Read the runs of the command line, and return why others are left out."""
    return read_readable_runs(expand_patterns(patterns))


def warn(lines: Sequence[str]) -> None:
    """Print why runs are left out."""
    for line in lines:
        print(f"Left out: {line}", file=sys.stderr)


def expand_patterns(patterns: Sequence[str]) -> list[Path]:
    """Return the folders that exist or match a pattern.

    A pattern without a match is kept, so that reading it fails with its name in the message. Files
    that match a pattern are no runs, and are left out.
    """
    paths: list[str] = []
    for pattern in patterns:
        matches = [path for path in sorted(glob.glob(pattern)) if Path(path).is_dir()]
        paths += [pattern] if Path(pattern).exists() else matches or [pattern]
    return [Path(path) for path in paths]


def default_folder(runs: Sequence[Run]) -> Path:
    """Return `compare/` in the common parent folder of the runs."""
    return Path(os.path.commonpath([run.folder.parent for run in runs])) / "compare"


if __name__ == "__main__":
    main()
