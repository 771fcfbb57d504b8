"""The recipes hold the published settings of each row, and the controlled ones differ in the objective alone."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lib import cli

TASKS = ("pickscore", "ocr", "geneval")
SD35_KL = {"pickscore": 0.01, "ocr": 0.04, "geneval": 0.04}
SETTINGS = (
    "steps", "eval.steps", "sde.level", "backbone.guidance", "backbone.resolution", "backbone.dtype", "data.repeats",
    "data.prompts", "updates", "clipping.high", "optim.lr", "kl.beta", "advantage.std", "backbone.lora.rank",
    "backbone.lora.alpha", "max_grad_norm", "ema.decay", "ema.every",
)  # fmt: skip


def composed(*overrides):
    with initialize_config_dir(cli.CONF, version_base="1.3"):
        return compose("train", [*overrides, "output=x"])


def settings(name):
    cfg = composed(f"experiment={name}")
    return tuple(OmegaConf.select(cfg, key) for key in SETTINGS)


@pytest.mark.parametrize("task", TASKS)
def test_sd35_as_published(task):
    same = (10, 40, 0.7, 4.5, 512, "float16", 24, 48, 2)
    tail = (32, 64, 1.0, 0.9, 8)
    assert settings(f"sd35_{task}_published_vanilla") == (
        *same,
        1e-4,
        3e-4,
        SD35_KL[task],
        "global",
        *tail,
    )
    high = 4e-6 if task == "pickscore" else 2e-6
    assert settings(f"sd35_{task}_published_guard") == (*same, high, 1e-4, None, "group", *tail)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("steps", "level"), [("dance", 0.3), ("flow", 0.9)])
def test_flux_as_published(task, steps, level):
    same, tail = (
        (6, 28, level, 3.5, 512, "bfloat16", 24, 48, 2),
        (None, "global", 64, 128, 1.0, 0.9, 8),
    )
    assert settings(f"flux_{task}_{steps}_published_vanilla") == (*same, 1e-4, 3e-4, *tail)
    assert settings(f"flux_{task}_{steps}_published_guard") == (*same, 2e-6, 2e-4, *tail)


@pytest.mark.parametrize(
    "name", ["tiny_ab", *(f"sd35_{t}" for t in TASKS), *(f"flux_{t}_flow" for t in TASKS)]
)
def test_controlled_arms_differ_in_the_objective_alone(name):
    arms = [
        OmegaConf.to_container(composed(f"experiment={name}", f"clipping={c}"))
        for c in ("vanilla", "guard")
    ]
    assert arms[0].pop("clipping") != arms[1].pop("clipping")
    assert arms[0] == arms[1]
    assert arms[0]["kl"]["_target_"].endswith("NoKl")


@pytest.mark.parametrize("preset", ["fast", "gpu_24gb", "gpu_80gb", "[fast,gpu_24gb]"])
@pytest.mark.parametrize("name", ["sd35_ocr", "flux_ocr_flow"])
def test_presets_join_recipes(name, preset):
    cfg = composed(f"experiment={name}", f"preset={preset}")
    assert cli.build(cfg).batch_sizes.samples == 48 * 24
