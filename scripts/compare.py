"""Compare runs: python scripts/compare.py RUN [RUN ...] [--out DIR] prints a table and writes a page."""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Sequence
from pathlib import Path

from grpo_guard import report
from grpo_guard.report.claims import claims
from grpo_guard.report.runs import Run
from grpo_guard.report.summary import summary
from lib import cli

EPILOG = """\
examples:
  python scripts/compare.py runs/2026-01-31/12-00-00_pickscore_guard_seed0
  python scripts/compare.py runs/vanilla runs/guard --out report
  python scripts/compare.py 'runs/2026-01-31/*_seed?'

A run may still be running. The page (index.html) needs no network and no other file; its figures also lie beside it
as PNG, in figures/. Exit status: 0, or 2 where something given cannot be used."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, print, write."""
    given = parser().parse_args(arguments)
    with cli.exit_on_mistake():
        runs = report.gather(expand(given.runs))
        print(text(runs), flush=True)
        print(report.write(runs, given.out or default_folder(runs)))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = "Compare run folders: a short table here, and one HTML page with tables, verdicts and figures."
    found = cli.make_parser(words, EPILOG)
    found.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run folder, or a quoted glob; the first is the reference",
    )
    found.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: compare/ beside the runs)"
    )
    return found


def expand(patterns: Sequence[str]) -> list[Path]:
    """Folders as given; what is no folder is taken for a glob. One without a match is kept, to be complained of."""
    found = [
        [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern)) or [pattern]
        for pattern in patterns
    ]
    return [Path(path) for paths in found for path in paths]


def default_folder(runs: Sequence[Run]) -> Path:
    """`compare/` under the runs' common parent."""
    return Path(os.path.commonpath([run.folder.parent for run in runs])) / "compare"


def text(runs: Sequence[Run]) -> str:
    """The summary and the verdicts in plain text."""
    lines = [["", *(run.label for run in runs)]]
    lines += [[name, *values] for section in summary(runs) for name, values in section.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)),
            ]
        )
        for line in lines
    ]
    return "\n".join(
        [*table, "", *(f"{claim.verdict:<14}{claim.rule.title}" for claim in claims(runs)), ""]
    )


if __name__ == "__main__":
    main()
