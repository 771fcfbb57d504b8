"""What grpo_guard.command.wandb_report does once its arguments are parsed."""

from __future__ import annotations

import argparse
from pathlib import Path

from grpo_guard.console import cli
from grpo_guard.logger._wandb_report import Dashboard, check_installed, send, write
from grpo_guard.logger.folder import read_rows
from grpo_guard.schema import require

ALL = 10**9  # more than any iteration


def make_dashboards(args: argparse.Namespace) -> list[str]:
    """Send or write the dashboards of the project that the runs share; return where they are."""
    check_installed()
    keys = {key for run in args.runs for row in read_rows(run, 0, ALL) for key in row}
    require(bool(keys), "the runs have no metrics.jsonl with numbers; give run folders")
    return deliver(Dashboard(project=args.project, entity=args.entity, keys=keys), args.out)


def deliver(dashboard: Dashboard, out: Path) -> list[str]:
    """Send the dashboards if there is an account, else write them; return where they are."""
    import wandb

    offline = wandb.setup().settings.mode in ("offline", "disabled", "dryrun")
    if offline or not wandb.login(prompt=False, verify=False):
        with cli.report_unwritable(out):
            return write(dashboard, out)
    return send(dashboard)
