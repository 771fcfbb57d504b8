"""Models with random weights or none, for all that depends on the shapes of tensors alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from grpo_guard.assets import locate, read_architectures
from grpo_guard.pipeline.encoding import EncodeBy
from grpo_guard.pipeline.model import PipelineModel
from grpo_guard.pipeline.recipe import PipelineRecipe
from grpo_guard.schema import record, require
from grpo_guard.types import Condition

META = torch.device("meta")
"""Torch's device for tensors that have a shape and no storage."""
CONFIG_ONLY_KEYS = ("architectures", "dtype")
"""Keys of transformers' config.json that its configuration classes do not take."""


@record
class Untrained:
    """A backbone of the recipe's architecture with random weights; on the meta device with none.

    It encodes every text as zeros. It needs the configurations of the networks, but no weights and
    no connection. It has text encoders only if they would stay on the device, that is without a
    prompt cache.
    """

    recipe: PipelineRecipe
    """The backbone whose architecture is built."""

    def load(self, device: torch.device) -> PipelineModel:
        """Build the model on the device; raises ConfigError for an unknown architecture."""
        parts = dict.fromkeys(_constructor_arguments(self.recipe)) | self._build_parts(device)
        pipe = self.recipe.pipeline_class(**parts)
        pipe.vae.to(memory_format=self.recipe.vae_layout)
        self.recipe.make_trainable(pipe.transformer)
        model = self.recipe.wrap(pipe, device)
        model.encode_by = self._encode_as_zeros(device)
        return model

    def _build_parts(self, device: torch.device) -> dict[str, Any]:
        recipe = self.recipe
        configs = read_configs(recipe.model)
        dtypes = {
            "transformer": recipe.dtype if recipe.lora else "float32",
            "vae": recipe.vae_dtype,
        }
        if recipe.prompt_cache is None:
            encoders = [part for part in configs if part.startswith("text_encoder")]
            dtypes |= dict.fromkeys(encoders, recipe.text_dtype)
        networks = {
            part: build_network(configs[part], getattr(torch, dtype), device)
            for part, dtype in dtypes.items()
        }
        return {**networks, "scheduler": FlowMatchEulerDiscreteScheduler()}

    def _encode_as_zeros(self, device: torch.device) -> EncodeBy:
        configs = read_configs(self.recipe.model)
        dtype = getattr(torch, self.recipe.text_dtype)
        length = self.recipe.encoded_tokens(configs)
        width = configs["transformer"].get("joint_attention_dim", 0)
        pooled_width = configs["transformer"].get("pooled_projection_dim", 0)
        return lambda embed, texts: Condition(
            tokens=torch.zeros(len(texts), length, width, dtype=dtype, device=device),
            pooled=torch.zeros(len(texts), pooled_width, dtype=dtype, device=device),
        )


def call_policy(model: PipelineModel, rows: int) -> Tensor:
    """Return the policy's velocities (rows, ...) for latents without storage."""
    v: Tensor = model.policy(*make_inputs(model, rows))
    return v


def make_inputs(model: PipelineModel, rows: int) -> tuple[Tensor, Tensor, Condition]:
    """Return latents (rows, ...), times and prompts without storage."""
    condition = model.encode([""])[torch.zeros(rows, dtype=torch.long)]
    latents = torch.empty(rows, *model.shape, device=META)
    return latents, torch.empty(rows, device=META), condition


def read_configs(model: str) -> dict[str, dict[str, Any]]:
    """Return the configuration of each network of a checkpoint.

    A folder has its own config.json files. For a hub id they ship with the package; raises
    ConfigError for one that does not.
    """
    folder = Path(locate("backbone.model", model))
    if folder.is_dir():
        return {
            file.parent.name: json.loads(file.read_text(encoding="utf-8"))
            for file in folder.glob("*/config.json")
        }
    architectures = read_architectures()
    models = architectures["models"]
    require(
        model in models,
        f"backbone.model={model} has no configuration in this package; give a folder with its"
        f" config.json files, or one of {', '.join(models)}",
    )
    return {part: architectures["parts"][name] for part, name in models[model].items()}


def build_network(config: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Build a frozen network from its configuration, with freshly initialised weights.

    Like transformers, it keeps the layers that overflow in float16 (T5's `wo`) in float32.
    """
    with device, _default_dtype(dtype):
        if "_class_name" in config:
            network: Any = getattr(diffusers, config["_class_name"]).from_config(config)
        else:
            kind = getattr(transformers, config["architectures"][0])
            settings = {k: v for k, v in config.items() if k not in CONFIG_ONLY_KEYS}
            network = kind(kind.config_class(**settings))
    float32_layers = set[str]()
    if dtype == torch.float16:
        float32_layers.update(getattr(network, "_keep_in_fp32_modules", None) or ())
    for name, parameter in network.named_parameters():
        wide = not float32_layers.isdisjoint(name.split("."))
        parameter.data = parameter.data.to(torch.float32 if wide else dtype)
    frozen: nn.Module = network.requires_grad_(False).eval()
    return frozen


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new tensors in this dtype, so that no float32 copy of a large network is ever made."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _constructor_arguments(recipe: PipelineRecipe) -> set[str]:
    """Return the parts that the pipeline's constructor takes."""
    names, _ = DiffusionPipeline._get_signature_keys(recipe.pipeline_class)
    return {*names}
