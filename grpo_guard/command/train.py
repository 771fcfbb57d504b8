"""Trains: python scripts/train.py clipping=guard reward=ocr iterations=30

--help lists the choices, --cfg job all settings.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from grpo_guard.console import cli
from grpo_guard.console.announcing import announce
from grpo_guard.console.streams import outlive_terminal


@hydra.main(version_base="1.3", config_path=cli.CONF, config_name="train")
@cli.job
def main(cfg: DictConfig) -> float | None:
    """Train; returns the number that a search of settings (sweeps/optuna.yaml) maximises."""
    announce()
    from grpo_guard.command.training import run_job

    return run_job(cfg)


def start() -> None:
    """Train as the command line says."""
    outlive_terminal()
    cli.run(main)


if __name__ == "__main__":
    start()
