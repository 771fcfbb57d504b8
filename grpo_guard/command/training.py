"""What scripts/train.py does once its settings are composed."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from grpo_guard.console import cli
from grpo_guard.console.announcing import describe_end
from grpo_guard.console.claim import check_before_claim, claim
from grpo_guard.console.errors import REFUSED, RESUMABLE
from grpo_guard.console.launch import launch_processes
from grpo_guard.console.overrides import hide_secret, quote
from grpo_guard.experiment import Experiment
from grpo_guard.lifecycle.hub import newest_checkpoint, push_checkpoint
from grpo_guard.logger.folder import is_finished
from grpo_guard.parallel.launched import LaunchedStrategy, world_size
from grpo_guard.schema import ConfigError, RunError
from grpo_guard.train import train


def run_job(cfg: DictConfig) -> float | None:
    """Check everything, then train unless the run is finished.

    Returns the number that a search of settings (sweeps/optuna.yaml) maximises.
    """
    cli.check_published(HydraConfig.get().runtime.choices)
    experiment = cli.build(cfg)
    experiment.split()
    launches = isinstance(experiment.strategy, LaunchedStrategy) and world_size() is None
    is_first = True
    if not launches:
        ranks = experiment.strategy.start()
        is_first = ranks.is_first
        # `${now:...}` may resolve differently on each rank.
        experiment = replace(experiment, output=ranks.broadcast(experiment.output))
    folder = Path(experiment.output)
    if is_finished(folder, experiment.iterations):
        print(f"{folder} is already finished; nothing to train", file=sys.stderr)
        if is_first:
            upload(experiment)
        return judge_outcome(folder)
    check_before_claim(experiment)
    if launches:
        launch(experiment.output, experiment.strategy.processes)
    else:
        claim_and_train(experiment, cfg, is_first)
        if is_first:
            upload(experiment)
            print(describe_end(folder), file=sys.stderr)
    return judge_outcome(folder)


def judge_outcome(folder: Path) -> float | None:
    """Return the number of a finished run that a search of settings maximises; None without one."""
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    # The report loads plotting, for which neither the start nor the end of a single run need wait.
    from grpo_guard.report.outcome import search_objective

    return search_objective(folder)


def launch(folder: str, processes: int) -> None:
    """Run this job on several processes of this machine, as torchrun does, and exit as they do."""
    overrides = [
        override
        for override in HydraConfig.get().overrides.task
        if not override.startswith("output=")
    ]
    # The default of `output` contains the time, so every process must be given the same one.
    output = [f"output={quote(folder)}", "hydra.mode=RUN"]
    command = [sys.executable, "-m", "grpo_guard.command.train", *overrides, *output]
    code, message = launch_processes(command, processes)
    if code == RESUMABLE:
        cli.fail(code, message, "stopped")
    if code == REFUSED:
        raise ConfigError(message)
    if code:
        raise RunError(message or f"its processes ended with code {code}; see above")


def upload(experiment: Experiment) -> None:
    """Upload the last checkpoint of a finished run if its settings name a repository for it."""
    repository = experiment.checkpoint.push_to_hub
    if repository is None:
        return
    address = push_checkpoint(newest_checkpoint(Path(experiment.output)), repository)
    if address:
        print(f"uploaded to {address}", file=sys.stderr)


def list_overrides() -> dict[str, Any]:
    """Return what Hydra knows of a job beyond its settings, for the names of dashboards.

    These are the choices of each group, the overrides without secrets, and the keys that a sweep
    varies.
    """
    job = HydraConfig.get()
    choices = {key: value for key, value in job.runtime.choices.items() if "hydra/" not in key}
    return {
        "choices": choices,
        "overrides": [hide_secret(override) for override in job.overrides.task],
        "swept": list(job.sweeper.get("params") or {}),
    }


def claim_and_train(experiment: Experiment, cfg: DictConfig, is_first: bool) -> None:
    """Train; the first process holds the run folder meanwhile."""
    cli.hide_progress_bars()
    with claim(experiment, cfg) if is_first else nullcontext():
        settings = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
        train(experiment, {**settings, **list_overrides()})
