"""The training entrypoint: python scripts/train.py clipping=guard reward=ocr iterations=30 (--help: the choices)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

import cli
from grpo_guard.train import Experiment, train
from grpo_guard.types import require


@hydra.main(version_base="1.3", config_path=cli.CONF, config_name="train")
@cli.job
def main(cfg: DictConfig) -> None:
    """Check everything, claim the run folder, train."""
    experiment = cli.build(cfg)
    experiment.split()
    claim(experiment, cfg)
    print(experiment.geometry.describe(), file=sys.stderr)
    train(experiment, OmegaConf.to_container(cfg, resolve=True))


def claim(experiment: Experiment, cfg: DictConfig) -> None:
    """Make the run folder and write its config.yaml; raises ConfigError where that cannot be."""
    folder = Path(experiment.output)
    require(not (folder / "config.yaml").exists(), f"output={folder} already holds a run; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
    except OSError as error:
        require(False, f"output={folder} cannot be written ({os.strerror(error.errno or 0)}); choose another folder")


if __name__ == "__main__":
    cli.run(main)
