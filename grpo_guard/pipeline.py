"""What all diffusers pipelines of flow matching share, whatever their architecture."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin
from jaxtyping import Float
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from grpo_guard.assets import locate
from grpo_guard.types import Condition, ConfigError, Velocity, component, require


@runtime_checkable
class Adapters(Protocol):
    """Something small to train instead of the transformer."""

    def attach(self, transformer: ModelMixin) -> None:
        """Add trainable adapters to a frozen transformer."""


@component
class Checkpoint:
    """A diffusers checkpoint, fine-tuned in full or by adapters.

    `model` is a shipped asset, a folder or a hub id; `t5_tokens` is the length of the T5 part of a prompt.
    """

    model: str
    resolution: int
    guidance: float
    t5_tokens: int
    dtype: Literal["float32", "float16", "bfloat16"]
    microbatch: int
    lora: Adapters | None
    kind: ClassVar[type[DiffusionPipeline]]
    multiple: ClassVar[int]

    def __post_init__(self) -> None:
        require(
            self.resolution % self.multiple == 0,
            f"resolution={self.resolution} is no multiple of {self.multiple}; give one that is",
        )
        require(self.microbatch > 0, f"microbatch={self.microbatch} is not positive")
        locate("model", self.model)

    def pipeline(self, device: torch.device) -> DiffusionPipeline:
        """The pipeline on the device, all of it frozen but what is to be trained."""
        pipe = self._read().to(device)
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        pipe.vae.to(memory_format=torch.channels_last)
        if self.lora is None:
            pipe.transformer.requires_grad_(True)
        else:
            self.lora.attach(pipe.transformer)
        return pipe

    def _read(self) -> DiffusionPipeline:
        """The checkpoint as it is; parts that its index gives as null, such as T5, stay away."""
        folder = locate("model", self.model)
        try:
            index = self.kind.load_config(folder)
            absent = {part: None for part, value in index.items() if value == [None, None]}
            return self.kind.from_pretrained(folder, dtype=getattr(torch, self.dtype), use_safetensors=True, **absent)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"backbone.model={self.model} cannot be loaded ({reason}); give a complete diffusers folder"
            ) from error


class PipelineModel:
    """A loaded pipeline around its policy.

    A family gives the latent's `shape`, makes a policy of a transformer and a guidance (`velocity`), and overrides what
    is its own.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        recipe: Checkpoint,
        shape: tuple[int, ...],
        velocity: Callable[[ModelMixin, float], nn.Module],
    ) -> None:
        self.pipe, self.recipe, self.shape, self.velocity = pipe, recipe, shape, velocity
        self.policy = velocity(pipe.transformer, recipe.guidance)

    def times(self, steps: int) -> Float[Tensor, " T1"]:
        """The scheduler's own sigmas, with its shift."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.pipe.scheduler.config)
        scheduler.set_timesteps(steps)
        sigmas: Tensor = scheduler.sigmas
        return sigmas

    def unpacked(self, latents: Float[Tensor, "B ..."]) -> Float[Tensor, "B C h w"]:
        """Latents as the autoencoder has them."""
        return latents

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "B ..."]) -> Float[Tensor, "B 3 H W"]:
        """Images in [0, 1], float32, decoded a few at a time."""
        vae = self.pipe.vae
        scaled = self.unpacked(latents) / vae.config.scaling_factor + vae.config.shift_factor
        parts = scaled.to(vae.dtype).split(self.recipe.microbatch)
        images = torch.cat([vae.decode(z, return_dict=False)[0].float() for z in parts])
        return (images / 2 + 0.5).clamp(0, 1).contiguous()

    def reference(self) -> Velocity:
        """The policy without its adapters or, where all of it is trained, a frozen copy, made once."""
        return self._without_adapters if self.recipe.lora else self._copy

    def unguided(self) -> Velocity:
        """The same transformer under a guidance of 1."""
        return self.velocity(self.pipe.transformer, 1.0)

    def save(self, folder: Path) -> None:
        """`lora/` for `load_lora_weights`, or `transformer/` for `from_pretrained`."""
        transformer: Any = self.pipe.transformer
        if self.recipe.lora is None:
            transformer.save_pretrained(folder / "transformer")
            return
        layers, recipe = get_peft_model_state_dict(transformer), transformer.peft_config["default"].to_dict()
        type(self.pipe).save_lora_weights(
            folder / "lora", transformer_lora_layers=layers, transformer_lora_adapter_metadata=recipe
        )

    def _without_adapters(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.pipe.transformer.disable_adapters()
        try:
            v: Tensor = self.policy(x, t, condition)
        finally:
            self.pipe.transformer.enable_adapters()
        return v

    @cached_property
    def _copy(self) -> nn.Module:
        return copy.deepcopy(self.policy).requires_grad_(False)
