"""Trains: python scripts/train.py clipping=guard reward=ocr iterations=30

--help lists the choices, --cfg job all settings.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from grpo_guard.experiment import IMMATERIAL, Experiment
from grpo_guard.lifecycle.checkpoint import is_finished
from grpo_guard.parallel.launched import LaunchedStrategy, world_size
from grpo_guard.report.outcome import search_objective
from grpo_guard.schema import ConfigError, RunError, require
from grpo_guard.train import train
from lib import cli
from lib.launch import run_processes

CHANGEABLE = {"iterations", *IMMATERIAL}
"""Settings that may differ from those of the run that is resumed."""


@hydra.main(version_base="1.3", config_path=cli.CONF, config_name="train")
@cli.job
def main(cfg: DictConfig) -> float | None:
    """Check everything, then train unless the run is finished.

    Returns the number that a search of settings (sweeps/optuna.yaml) maximises.
    """
    experiment = cli.build(cfg)
    experiment.split()
    launches = isinstance(experiment.strategy, LaunchedStrategy) and world_size() is None
    if not launches:
        experiment = share_output(experiment)
    folder = Path(experiment.output)
    if is_finished(folder, experiment.iterations):
        print(f"{folder} is already finished; nothing to do", file=sys.stderr)
    elif launches:
        launch(experiment)
    else:
        claim_and_train(experiment, cfg)
    return search_objective(folder)


def share_output(experiment: Experiment) -> Experiment:
    """Give every rank the run folder of rank 0: `${now:...}` may resolve differently on each."""
    ranks = experiment.strategy.start()
    return replace(experiment, output=ranks.broadcast(experiment.output))


def launch(experiment: Experiment) -> None:
    """Run this job on several processes of this machine, as torchrun does, and exit as they do."""
    overrides = [
        override
        for override in HydraConfig.get().overrides.task
        if not override.startswith("output=")
    ]
    # The default of `output` contains the time, so every process must be given the same one.
    output = [f"output={experiment.output}", "hydra.mode=RUN"]
    command = [sys.executable, sys.argv[0], *overrides, *output]
    code = run_processes(command, experiment.strategy.processes)
    if code == cli.RESUMABLE:
        raise SystemExit(code)
    if code:
        raise RunError(f"its processes ended with code {code}; their messages are above")


def claim_and_train(experiment: Experiment, cfg: DictConfig) -> None:
    """Claim the run folder if this is the first process, and train."""
    if os.environ.get("RANK", "0") == "0":
        claim(experiment, cfg)
        print(experiment.batch_sizes.describe(), file=sys.stderr)
    train(experiment, OmegaConf.to_container(cfg, resolve=True))


def claim(experiment: Experiment, cfg: DictConfig) -> None:
    """Create the run folder and write its config.yaml.

    Raises ConfigError if that is impossible, if the folder holds another run, or if the run to
    resume was written by an earlier version.
    """
    folder = Path(experiment.output)
    file = folder / "config.yaml"
    if file.exists():
        require(
            experiment.resume == "auto",
            f"output={folder} already holds a run; choose another folder",
        )
        settings = OmegaConf.to_container(cfg, resolve=True)
        changed = changed_settings(cli.read_config(file), settings)
        require(
            not changed,
            f"output={folder} holds a run with other settings ({', '.join(changed)}); choose"
            " another folder, or start there from a state of that run with resume=STATE",
        )
    check_source(experiment.resume)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigError(
            f"output={folder} cannot be written ({reason}); choose another folder"
        ) from error


def check_source(resume: str) -> None:
    """Raise ConfigError if `resume` is a state of a run that an earlier version wrote."""
    if resume in ("auto", "never"):
        return
    run = Path(resume).absolute().parent.parent  # a state is RUN/state/<iteration>
    file = run / "config.yaml"
    if file.exists():
        cli.read_config(file)


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the top-level keys that differ and may not."""
    keys = (before.keys() | now.keys()) - CHANGEABLE
    return sorted(key for key in keys if before.get(key) != now.get(key))


if __name__ == "__main__":
    cli.run(main)
