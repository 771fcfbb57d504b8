"""Backbones of the right architecture without what they have learned, for whatever depends on shapes alone."""

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
from torch import nn

from grpo_guard.assets import locate
from grpo_guard.backbone.sd3 import SD3
from grpo_guard.pipeline.encoding import Encode
from grpo_guard.pipeline.model import Checkpoint, PipelineModel
from grpo_guard.types import Condition, record, require

KNOWN = json.loads(
    (Path(__file__).parents[1] / "assets" / "architectures.json").read_text(encoding="utf-8")
)


@record
class Untrained:
    """A backbone with random weights, or on the meta device with none; every text is encoded as zeros.

    It needs the configuration of the networks, of a hub id such as it is known here, but no connection. Text encoders
    are there only where they would stay on the device, without a prompt cache.
    """

    recipe: Checkpoint

    def load(self, device: torch.device) -> PipelineModel:
        """The model on the device; raises ConfigError for an architecture that is not known here."""
        pipe = self.recipe.kind(**dict.fromkeys(_expected(self.recipe)) | self._parts(device))
        pipe.vae.to(memory_format=self.recipe.layout)
        self.recipe.open(pipe.transformer)
        model = self.recipe.around(pipe, device)
        model.encode = self._encode(device)
        return model

    def _parts(self, device: torch.device) -> dict[str, Any]:
        recipe, configs = self.recipe, configurations(self.recipe.model)
        dtypes = {
            "transformer": recipe.dtype if recipe.lora else "float32",
            "vae": recipe.vae_dtype,
        }
        if recipe.prompt_cache is None:
            dtypes |= {
                part: recipe.text_dtype for part in configs if part.startswith("text_encoder")
            }
        made = {
            part: network(configs[part], getattr(torch, name), device)
            for part, name in dtypes.items()
        }
        return {**made, "scheduler": FlowMatchEulerDiscreteScheduler()}

    def _encode(self, device: torch.device) -> Encode:
        configs, dtype = configurations(self.recipe.model), getattr(torch, self.recipe.text_dtype)
        width, pooled = (
            configs["transformer"].get(f"{k}_dim", 0)
            for k in ("joint_attention", "pooled_projection")
        )
        clip = (
            configs["text_encoder"]["max_position_embeddings"]
            if isinstance(self.recipe, SD3)
            else 0
        )
        length = self.recipe.longest + clip
        return lambda texts: Condition(
            tokens=torch.zeros(len(texts), length, width, dtype=dtype, device=device),
            pooled=torch.zeros(len(texts), pooled, dtype=dtype, device=device),
        )


def configurations(model: str) -> dict[str, dict[str, Any]]:
    """The configuration of each network of a checkpoint: of a folder its own, of a hub id what is known here."""
    folder, known = Path(locate("backbone.model", model)), KNOWN["models"]
    if folder.is_dir():
        return {
            file.parent.name: json.loads(file.read_text(encoding="utf-8"))
            for file in folder.glob("*/config.json")
        }
    names = ", ".join(known)
    require(
        model in known,
        f"backbone.model={model} is not known here; give a folder with its config.json or {names}",
    )
    return {part: KNOWN["parts"][name] for part, name in known[model].items()}


def network(config: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The frozen network of a configuration, with its first weights.

    As transformers loads them, some layers (T5's `wo`) are never float16.
    """
    with device, _default(dtype):
        if "_class_name" in config:
            made = getattr(diffusers, config["_class_name"]).from_config(config)
        else:
            kind = getattr(transformers, config["architectures"][0])
            made = kind(
                kind.config_class(
                    **{k: v for k, v in config.items() if k not in ("architectures", "dtype")}
                )
            )
    wide = (
        set(getattr(made, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else set()
    )
    for name, parameter in made.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if wide & set(name.split(".")) else dtype)
    frozen: nn.Module = made.requires_grad_(False).eval()
    return frozen


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """New tensors are of the dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _expected(recipe: Checkpoint) -> set[str]:
    """What the pipeline's constructor asks for."""
    names, _ = DiffusionPipeline._get_signature_keys(recipe.kind)
    return {*names}
