"""Verify a run's numbers: python scripts/verify_run.py RUN [--help]"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from grpo_guard.console import cli
from grpo_guard.console.errors import FAILED

EPILOG = """\
examples:
  python scripts/train.py clipping=guard iterations=2 keep_trajectory=1
  python scripts/verify_run.py runs/2026-01-31/12-00-00_pickscore_guard_seed0

The run must have been trained with keep_trajectory=N. It then keeps in trajectory/
what iteration N drew and used. This command computes totals of rewards, advantages,
ratios, clip fractions, losses and the KL penalty from it again, in float64 and with
separate code, and compares them with metrics.jsonl. Numbers may differ by 1e-6 of
their size, or by 1e-6 if they are smaller than 1; a ratio by 1e-6 / sqrt(D) at D
latent dimensions, times 1 / s if it is not normalised. The exit status is 0 if all
agree, 1 if one does not, and 2 if the run cannot be verified."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each kept iteration; exit with 1 if a number differs."""
    args = parser().parse_args(arguments)
    with cli.exit_on_mistake():
        from grpo_guard.command.verification.table import verify

        if not verify(args.run):
            raise SystemExit(FAILED)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    words = "Compute the numbers of an iteration again, and compare them with what was logged."
    line = cli.make_parser(words, EPILOG)
    line.add_argument("run", type=Path, metavar="RUN", help="a run folder with trajectory/")
    return line


if __name__ == "__main__":
    main()
