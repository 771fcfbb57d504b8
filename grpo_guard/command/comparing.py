"""What scripts/compare.py does once its arguments are parsed."""

from __future__ import annotations

import argparse
import glob
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from grpo_guard.report import analyse_runs, read_readable_runs, write_page
from grpo_guard.report.runs import Run
from grpo_guard.report.table import FORMATS, MOST_WIDTH, format_terminal

RUN_FILES = ("config.yaml", "metrics.jsonl", "metrics.jsonl.gz", "histograms.npz")
"""Files of which a run has one at least, even if others are lost."""


def print_table(args: argparse.Namespace) -> None:
    """Print the table alone, in the format of --table, and notes on it to standard error."""
    runs, left_out = read_named_runs(args.runs)
    warn(left_out, runs)
    results = analyse_runs(runs)
    for note in dict.fromkeys(note for result in results for note in result.notes):
        print(f"Note: {note}", file=sys.stderr)
    print(FORMATS[args.table](results), end="")


def compare(args: argparse.Namespace, refresh: int = 0) -> tuple[Run, ...]:
    """Print the table, write the page, print its path, and return the runs."""
    runs, left_out = read_named_runs(args.runs)
    warn(left_out, runs)
    study, missing = read_named_runs(args.behind) if args.behind else ((), ())
    warn(missing, study)
    results = analyse_runs(runs, study)
    columns = shutil.get_terminal_size((MOST_WIDTH, 0)).columns
    print(format_terminal(results, columns), flush=True)
    print(write_page(results, args.out or default_folder(runs), left_out, refresh), flush=True)
    return runs


def watch(args: argparse.Namespace) -> None:
    """Compare again and again until all runs are finished; the last page stays as it is."""
    while not all(run.has_ended for run in compare(args, refresh=args.watch)):
        time.sleep(args.watch)
    compare(args)


def read_named_runs(patterns: Sequence[str]) -> tuple[tuple[Run, ...], tuple[str, ...]]:
    """Read the runs of the command line, and return why others are left out."""
    return read_readable_runs(expand_patterns(patterns))


def warn(left_out: Sequence[str], runs: Sequence[Run]) -> None:
    """Print why runs are left out, and which files of the others are damaged."""
    for line in left_out:
        print(f"Left out: {line}", file=sys.stderr)
    for damage in (damage for run in runs for damage in run.damages):
        print(f"Warning: {damage}", file=sys.stderr)


def expand_patterns(patterns: Sequence[str]) -> list[Path]:
    """Return the folders that exist or match a pattern.

    A pattern without a match is kept, so that reading it fails with its name in the message. What
    matches a pattern and does not look like a run is left out: files, and folders such as that of
    an earlier comparison.
    """
    paths: list[Path] = []
    for pattern in patterns:
        matches = [path for path in map(Path, sorted(glob.glob(pattern))) if looks_like_run(path)]
        paths += [Path(pattern)] if Path(pattern).exists() else matches or [Path(pattern)]
    return paths


def looks_like_run(path: Path) -> bool:
    """Whether a path is a folder with a file that only runs have."""
    return any((path / name).is_file() for name in RUN_FILES)


def default_folder(runs: Sequence[Run]) -> Path:
    """Return `compare/` in the common parent folder of the runs."""
    return Path(os.path.commonpath([run.folder.parent for run in runs])) / "compare"
