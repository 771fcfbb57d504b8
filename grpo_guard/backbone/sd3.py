"""Stable Diffusion 3 and 3.5, of any size."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from jaxtyping import Float
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from grpo_guard.assets import locate
from grpo_guard.backbone.lora import Lora
from grpo_guard.types import Condition, ConfigError, Velocity, component, require


class SD3Policy(nn.Module):
    """The transformer's velocity; with guidance above 1, extrapolated from the negative prompt's in one batch."""

    def __init__(self, transformer: SD3Transformer2DModel, guidance: float, negative: Condition) -> None:
        super().__init__()
        self.transformer, self.guidance, self.negative = transformer, guidance, negative

    def forward(
        self, x: Float[Tensor, "R C H W"], t: Float[Tensor, " R"], condition: Condition
    ) -> Float[Tensor, "R C H W"]:
        """Velocity of latents x at times t in [0, 1]."""
        if self.guidance == 1:
            return self._velocity(x, t, condition.tokens, condition.pooled)
        tokens = torch.cat([condition.tokens, self.negative.tokens.expand_as(condition.tokens)])
        pooled = torch.cat([condition.pooled, self.negative.pooled.expand_as(condition.pooled)])
        v, base = self._velocity(torch.cat([x, x]), torch.cat([t, t]), tokens, pooled).chunk(2)
        return base + self.guidance * (v - base)

    def _velocity(self, x: Tensor, t: Tensor, tokens: Tensor, pooled: Tensor) -> Tensor:
        dtype = self.transformer.dtype
        v: Tensor = self.transformer(x.to(dtype), tokens.to(dtype), pooled.to(dtype), 1000 * t, return_dict=False)[0]
        return v


class SD3Model:
    """A loaded StableDiffusion3Pipeline around its policy."""

    def __init__(self, pipe: StableDiffusion3Pipeline, recipe: SD3) -> None:
        self.pipe, self.recipe = pipe, recipe
        factor = pipe.vae_scale_factor
        self.shape = (pipe.transformer.config.in_channels, recipe.resolution // factor, recipe.resolution // factor)
        self.policy = SD3Policy(pipe.transformer, recipe.guidance, self.encode([""]))

    def times(self, steps: int) -> Float[Tensor, " T1"]:
        """The scheduler's own sigmas, with its shift."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.pipe.scheduler.config)
        scheduler.set_timesteps(steps)
        sigmas: Tensor = scheduler.sigmas
        return sigmas

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Condition:
        """CLIP (and T5, where there is one) tokens and pooled CLIP embeddings, as the pipeline computes them."""
        tokens, _, pooled, _ = self.pipe.encode_prompt(
            list(texts), None, None, do_classifier_free_guidance=False, max_sequence_length=self.recipe.t5_tokens
        )
        return Condition(tokens=tokens, pooled=pooled)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Images in [0, 1], float32, decoded a few at a time."""
        vae = self.pipe.vae
        parts = (
            (latents / vae.config.scaling_factor + vae.config.shift_factor).to(vae.dtype).split(self.recipe.microbatch)
        )
        images = torch.cat([vae.decode(z, return_dict=False)[0].float() for z in parts])
        return (images / 2 + 0.5).clamp(0, 1).contiguous()

    def reference(self) -> Velocity:
        """The policy without its adapters or, where all of it is trained, a frozen copy, made once."""
        return self._without_adapters if self.recipe.lora else self._copy

    def unguided(self) -> Velocity:
        """The same transformer under a guidance of 1."""
        return SD3Policy(self.pipe.transformer, 1.0, self.policy.negative)

    def _without_adapters(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.pipe.transformer.disable_adapters()
        try:
            v: Tensor = self.policy(x, t, condition)
        finally:
            self.pipe.transformer.enable_adapters()
        return v

    @cached_property
    def _copy(self) -> SD3Policy:
        return copy.deepcopy(self.policy).requires_grad_(False)

    def save(self, folder: Path) -> None:
        """`lora/` for `load_lora_weights`, or `transformer/` for `from_pretrained`."""
        transformer = self.pipe.transformer
        if self.recipe.lora is None:
            transformer.save_pretrained(folder / "transformer")
        else:
            layers = get_peft_model_state_dict(transformer)
            recipe = transformer.peft_config["default"].to_dict()
            StableDiffusion3Pipeline.save_lora_weights(
                folder / "lora", transformer_lora_layers=layers, transformer_lora_adapter_metadata=recipe
            )


@component
class SD3:
    """Any checkpoint of the SD3 family in diffusers format, fine-tuned in full or by LoRA.

    `model` is a shipped asset, a folder or a hub id; `t5_tokens` is the length of the T5 part of a prompt.
    """

    model: str
    resolution: int
    guidance: float
    t5_tokens: int
    dtype: Literal["float32", "float16", "bfloat16"]
    microbatch: int
    lora: Lora | None

    def __post_init__(self) -> None:
        require(self.guidance >= 1, f"guidance={self.guidance} is below 1; 1 means no classifier-free guidance")
        require(self.resolution % 8 == 0, f"resolution={self.resolution} is no multiple of 8; give one that is")
        require(self.microbatch > 0, f"microbatch={self.microbatch} is not positive")
        locate("model", self.model)

    def load(self, device: torch.device) -> SD3Model:
        """The pipeline on the device, all frozen but the policy."""
        pipe = self._pipeline().to(device)
        for part in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3, pipe.transformer):
            if part is not None:
                part.requires_grad_(False).eval()
        pipe.vae.to(memory_format=torch.channels_last)
        if self.lora is None:
            pipe.transformer.requires_grad_(True)
        else:
            self.lora.attach(pipe.transformer)
        return SD3Model(pipe, self)

    def _pipeline(self) -> StableDiffusion3Pipeline:
        """The checkpoint's own pipeline; parts that its index gives as null, such as T5, stay away."""
        folder = locate("model", self.model)
        try:
            index = StableDiffusion3Pipeline.load_config(folder)
            absent = {part: None for part, value in index.items() if value == [None, None]}
            return StableDiffusion3Pipeline.from_pretrained(
                folder, dtype=getattr(torch, self.dtype), use_safetensors=True, **absent
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"backbone.model={self.model} cannot be loaded ({reason}); give a complete diffusers folder"
            ) from error
