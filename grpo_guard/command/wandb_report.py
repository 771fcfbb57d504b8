"""Lay out a project of W&B by arms: python -m grpo_guard.command.wandb_report runs/ab/*

It saves a workspace and a report with gold against proxy, ratios by step, clips and samples.
Without an account it writes what it would send.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from grpo_guard.console import cli
from grpo_guard.console.announcing import announce

EPILOG = "example: python -m grpo_guard.command.wandb_report 'runs/ab/clipping=guard_seed=0'"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the dashboards and print where they are."""
    args = parser().parse_args(arguments)
    with cli.exit_on_mistake():
        announce()
        from grpo_guard.command.dashboards import make_dashboards

        print(*make_dashboards(args), sep="\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    line = cli.make_parser("Make a workspace and a report of Weights & Biases.", EPILOG)
    line.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="a run folder; charts are made for the keys that the runs logged",
    )
    line.add_argument("--project", default="grpo_guard", help="W&B project (default: grpo_guard)")
    line.add_argument("--entity", default="", help="W&B user or team (default: the account's)")
    line.add_argument(
        "--out",
        type=Path,
        default=Path("wandb_report"),
        metavar="DIR",
        help="where JSON files are written without an account (default: wandb_report)",
    )
    return line


if __name__ == "__main__":
    main()
