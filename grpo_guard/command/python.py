"""What Python code calls in place of a command line: compose and run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict

from grpo_guard.command.training import claim_and_train, upload
from grpo_guard.console import cli
from grpo_guard.console.claim import check_before_claim
from grpo_guard.console.errors import explain_mistake
from grpo_guard.console.overrides import quote
from grpo_guard.experiment import Experiment
from grpo_guard.logger.folder import is_finished
from grpo_guard.parallel.launched import LaunchedStrategy
from grpo_guard.schema import ConfigError, require


def compose(overrides: Sequence[str] = ()) -> Experiment:
    """Return the experiment that `grpo-guard train` would run with these overrides.

    Raises ConfigError for overrides that cannot be used. Example:
    `compose(["clipping=guard", "iterations=2"])`.
    """
    experiment, _ = build(overrides)
    return experiment


def run(overrides: Sequence[str] = ()) -> Path:
    """Train in this process, as `grpo-guard train` does, and return the run folder.

    A finished run is left as it is, and an unfinished one continues. Raises ConfigError for
    overrides that cannot be used, and RunError if the run cannot continue.
    """
    experiment, cfg = build(overrides)
    require(
        not isinstance(experiment.strategy, LaunchedStrategy),
        "Python code runs strategy=single; start several processes with grpo-guard train",
    )
    experiment.split()
    folder = Path(experiment.output)
    if not is_finished(folder, experiment.iterations):
        check_before_claim(experiment)
        claim_and_train(experiment, cfg, is_first=True)
    upload(experiment)
    return folder


def build(overrides: Sequence[str]) -> tuple[Experiment, DictConfig]:
    """Return an experiment and its settings.

    Raises ConfigError, in one line, for overrides that cannot be used.
    """
    try:
        cfg = compose_settings(overrides)
        return cli.build(cfg), cfg
    except HydraException as error:
        raise ConfigError(explain_mistake(error)) from error


def compose_settings(overrides: Sequence[str]) -> DictConfig:
    """Compose the settings of a run; raises ConfigError for a pair that does not go together."""
    words = [f"hydra.searchpath=[{quote(f'file://{cli.SETTINGS}')}]", *overrides]
    with hydra.initialize_config_dir(cli.CONF, version_base="1.3"):
        cfg = hydra.compose("train", words, return_hydra_config=True)
        # The names of the choices appear in the default name of the run folder.
        HydraConfig.instance().set_config(cfg)
    cli.check_published(HydraConfig.get().runtime.choices)
    with open_dict(cfg):
        del cfg.hydra
    return cfg
