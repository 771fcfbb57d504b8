"""The training entrypoint: python scripts/train.py clipping=guard reward=ocr iterations=30 (--help: the choices)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from grpo_guard.experiment import Experiment
from grpo_guard.lifecycle.checkpoint import is_finished
from grpo_guard.parallel.ranks import LaunchedStrategy, world_size
from grpo_guard.report.outcome import objective
from grpo_guard.train import train
from grpo_guard.types import RunError, require
from lib import cli
from lib.launch import spread

FREE = ("iterations", "resume", "output", "strategy", "logger", "checkpoint")
"""What may differ from the run that is gone on with."""


@hydra.main(version_base="1.3", config_path=cli.CONF, config_name="train")
@cli.job
def main(cfg: DictConfig) -> float | None:
    """Check everything, then train unless that is done; returns what a search of settings maximises."""
    experiment = cli.build(cfg)
    experiment.split()
    if is_finished(Path(experiment.output), experiment.iterations):
        print(f"{experiment.output} is finished already; nothing to do", file=sys.stderr)
    elif isinstance(experiment.strategy, LaunchedStrategy) and world_size() is None:
        start(experiment)
    else:
        begin(experiment, cfg)
    return objective(Path(experiment.output))


def begin(experiment: Experiment, cfg: DictConfig) -> None:
    """Claim the run folder, for all processes, and train."""
    if os.environ.get("RANK", "0") == "0":
        claim(experiment, cfg)
        print(experiment.batch_sizes.describe(), file=sys.stderr)
    train(experiment, OmegaConf.to_container(cfg, resolve=True))


def start(experiment: Experiment) -> None:
    """Run this job on processes of this machine, as torchrun would, and end as they end."""
    given = [
        override
        for override in HydraConfig.get().overrides.task
        if not override.startswith("output=")
    ]
    command = [sys.executable, sys.argv[0], *given, f"output={experiment.output}", "hydra.mode=RUN"]
    code = spread(command, experiment.strategy.processes)
    if code == cli.RESUMABLE:
        raise SystemExit(code)
    if code:
        raise RunError(f"its processes ended with code {code}")


def claim(experiment: Experiment, cfg: DictConfig) -> None:
    """Make the run folder and write its config.yaml; raises ConfigError where that cannot be, or holds another run."""
    folder = Path(experiment.output)
    file = folder / "config.yaml"
    if file.exists():
        require(
            experiment.resume == "auto",
            f"output={folder} already holds a run; choose another folder",
        )
        changed = differences(OmegaConf.load(file), cfg)
        require(
            not changed,
            f"output={folder} holds a run of other settings ({', '.join(changed)}); choose another folder, or begin"
            " there from one of its states by resume=",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
    except OSError as error:
        require(
            False,
            f"output={folder} cannot be written ({os.strerror(error.errno or 0)}); choose another folder",
        )


def differences(before: object, now: DictConfig) -> list[str]:
    """The top-level keys that are not as they were, but for those that may differ."""
    old = OmegaConf.to_container(before)
    new = OmegaConf.to_container(now, resolve=True)
    assert isinstance(old, dict)
    assert isinstance(new, dict)
    return sorted(str(k) for k in (old.keys() | new.keys()) - {*FREE} if old.get(k) != new.get(k))


if __name__ == "__main__":
    cli.run(main)
