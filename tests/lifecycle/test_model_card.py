"""A model card describes what was trained, and its code draws the pictures that the run drew."""

import re

import pytest
import torch
import yaml
from sampling import draw_by_card, perturb, sample

from grpo_guard.backbone.lora import Lora
from grpo_guard.backbone.sd3 import SD3
from grpo_guard.lifecycle.model_card import make_card

BACKBONE = {
    "model": "sd3_tiny",
    "resolution": 64,
    "guidance": 2.0,
    "t5_tokens": 0,
    "microbatch": 8,
    "dtype": "float32",
    "vae_dtype": "float32",
    "text_dtype": "float32",
    "gradient_checkpointing": False,
    "prompt_cache": None,
}
LORA = {"rank": 4, "alpha": 8, "targets": ["attn.to_q"]}
ROWS = [
    {"iteration": 0, "eval/proxy/pickscore": 20.5, "reward/total": 1.0},
    {"iteration": 1, "reward/total": 2.0},
    {"iteration": 2, "eval/proxy/pickscore": 21.25},
]


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_code_on_a_card_draws_what_the_run_draws(lora, tmp_path, monkeypatch):
    model = SD3(**BACKBONE, lora=Lora(**lora) if lora else None).load(torch.device("cpu"))
    perturb(model)
    backbone = BACKBONE | {"lora": lora, "_target_": "grpo_guard.backbone.sd3.SD3"}
    latents = draw_by_card(model, backbone, tmp_path, monkeypatch)
    assert (latents - sample(model, ["a red circle"], 4)[0]).abs().max() < 1e-4


def test_a_card_holds_recipe_measurements_and_configuration():
    config = {"backbone": {"model": "org/name", "lora": None}, "steps": 10, "optim": {"lr": 3e-4}}
    text = make_card(config, ROWS, 2)
    header, body = text.removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(header)["base_model"] == "org/name"
    assert "| optim.lr | 0.0003 |" in body
    assert "| eval/proxy/pickscore | 20.5 | 21.25 |" in body
    assert "| held-out prompts | iteration 0 | iteration 2 |" in body
    assert yaml.safe_load(re.search(r"```yaml\n(.*?)```", body, re.S)[1]) == config
    assert "clipping" not in body


def test_a_run_without_evaluations_says_so():
    assert "Nothing was evaluated." in make_card({}, [{"iteration": 0}], 1)
