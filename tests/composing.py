"""Composes configurations as the scripts do."""

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from grpo_guard.console import cli

EARLIER_CONFIG = {
    "old": {"_target_": "grpo_guard.old.rollout.Rollout"},
    "tail": {"_target_": "grpo_guard.tail.euler.Euler"},
    "clipping": {"_target_": "grpo_guard.clipping.clip.Clip", "high": 2e-6, "low": 2e-6},
    "_target_": "grpo_guard.train.Experiment",
    "seed": 0,
}
"""Part of the config.yaml of a run of an earlier version."""


def compose_run(*overrides, missing="unused", **options):
    """Compose the settings of a run; keys that must be given get the value `missing`."""
    with initialize_config_dir(cli.CONF, version_base="1.3"):
        cfg = compose("train", [f"hydra.searchpath=[file://{cli.ROOT}]", *overrides], **options)
    return cfg if options else fill(cfg, missing)


def compose_choice(choice, missing="unused"):
    """Compose one choice, such as "sde/window/all", without the rest of a run.

    It takes a quarter of the time of a run.
    """
    group, _, name = choice.rpartition("/")
    with initialize_config_dir(cli.CONF, version_base="1.3"):
        cfg = compose(overrides=[f"+{group}={name}"])
    return OmegaConf.select(fill(cfg, missing), group.replace("/", "."))


def fill(cfg, missing):
    for key in OmegaConf.missing_keys(cfg):
        OmegaConf.update(cfg, key, missing)
    return cfg
