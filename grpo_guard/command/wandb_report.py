"""Lay out a project of W&B by arms: python -m grpo_guard.command.wandb_report runs/ab/*

It saves a workspace and a report with gold against proxy, ratios by step, clips and samples.
Without an account it writes what it would send.
"""

from __future__ import annotations

from pathlib import Path

from grpo_guard.console import cli
from grpo_guard.logger._wandb_report import Dashboard, check_installed, send, write
from grpo_guard.logger.folder import read_rows
from grpo_guard.schema import require

EPILOG = "example: python -m grpo_guard.command.wandb_report 'runs/ab/clipping=guard_seed=0'"
ALL = 10**9  # more than any iteration


def main() -> None:
    """Send or write the dashboards of the project that the runs on the command line share."""
    parser = cli.make_parser("Make a workspace and a report of Weights & Biases.", EPILOG)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, for the keys they have")
    parser.add_argument("--project", default="grpo_guard", help="W&B project (grpo_guard)")
    parser.add_argument("--entity", default="", help="W&B user or team (the account's default)")
    parser.add_argument("--out", type=Path, default=Path("wandb_report"), help="folder offline")
    options = parser.parse_args()
    with cli.exit_on_mistake():
        check_installed()
        keys = {key for run in options.runs for row in read_rows(run, 0, ALL) for key in row}
        require(bool(keys), "the runs have no metrics.jsonl with numbers; give run folders")
        dashboard = Dashboard(project=options.project, entity=options.entity, keys=keys)
        print(*make(dashboard, options.out), sep="\n")


def make(dashboard: Dashboard, out: Path) -> list[str]:
    """Send the dashboards if there is an account, else write them; return where they are."""
    import wandb

    offline = wandb.setup().settings.mode in ("offline", "disabled", "dryrun")
    if offline or not wandb.login(prompt=False, verify=False):
        with cli.report_unwritable(out):
            return write(dashboard, out)
    return send(dashboard)


if __name__ == "__main__":
    main()
