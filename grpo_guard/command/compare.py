"""Compare runs: python scripts/compare.py RUN [RUN ...] [--out DIR] [--table FORMAT] [--help]"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from grpo_guard.console import cli
from grpo_guard.schema import require

EPILOG = """\
examples:
  python scripts/compare.py runs/2026-01-31/12-00-00_pickscore_guard_seed0
  python scripts/compare.py runs/vanilla runs/guard --out report
  python scripts/compare.py 'runs/2026-01-31/*_seed?' --watch
  python scripts/compare.py 'runs/study/*' --table latex > table.tex
  python scripts/compare.py runs/mine \\
      --behind docs/study/over_optimization_runs/*

Runs that differ in their seed alone are one arm. Runs may still be training. A folder of the list
that holds no run is left out with a line. A run of which a file is damaged is compared without what
is lost, and a line says so. The page, index.html, needs no network, and its path is printed last.
Its figures are also written as SVG, PNG and CSV into figures/ next to it. The exit status is 0, or
2 if an argument cannot be used."""
WATCH_SECONDS = 60
TABLES = ("csv", "latex", "markdown")
"""Formats of --table: the keys of `report.table.FORMATS`."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, write the page and print its path."""
    args = parser().parse_args(arguments)
    with cli.exit_on_mistake():
        require(
            args.watch is None or args.watch > 0,
            f"--watch={args.watch} is not positive; give a number of seconds",
        )
        require(
            not (args.table and args.behind),
            "--behind belongs to the page, and --table makes none; leave one of them out",
        )
        from grpo_guard.command import comparing

        if args.table:
            comparing.print_table(args)
        elif args.watch:
            comparing.watch(args)
        else:
            comparing.compare(args)


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
        "--out",
        type=Path,
        metavar="DIR",
        help="where to write (default: compare/ next to the runs)",
    )
    line.add_argument(
        "--behind",
        nargs="+",
        metavar="RUN",
        help="the runs of a study of the same backbone and reward: its bands are drawn behind golds"
        " against the proxy, and its answers follow those of the runs",
    )
    line.add_argument(
        "--table",
        choices=TABLES,
        metavar="FORMAT",
        help=f"print only the table, as {', '.join(TABLES)}, and write no page; csv has numbers"
        " with their 95 %% intervals, durations in seconds and percentages as shares",
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


if __name__ == "__main__":
    main()
