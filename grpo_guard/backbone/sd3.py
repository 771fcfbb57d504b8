"""Stable Diffusion 3 and 3.5, of any size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline, SD3Transformer2DModel, StableDiffusion3Pipeline
from jaxtyping import Float
from torch import Tensor, nn

from grpo_guard.pipeline import Checkpoint, PipelineModel
from grpo_guard.types import Condition, component, require


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


class SD3Model(PipelineModel):
    """A loaded StableDiffusion3Pipeline; a latent is (C, H / 8, W / 8)."""

    def __init__(self, pipe: StableDiffusion3Pipeline, recipe: SD3) -> None:
        self.pipe, self.recipe = pipe, recipe
        side = recipe.resolution // pipe.vae_scale_factor
        shape = (pipe.transformer.config.in_channels, side, side)
        super().__init__(pipe, recipe, shape, partial(SD3Policy, negative=self.encode([""])))

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Condition:
        """CLIP (and T5, where there is one) tokens and pooled CLIP embeddings, as the pipeline computes them."""
        tokens, _, pooled, _ = self.pipe.encode_prompt(
            list(texts), None, None, do_classifier_free_guidance=False, max_sequence_length=self.recipe.t5_tokens
        )
        return Condition(tokens=tokens, pooled=pooled)


@component
class SD3(Checkpoint):
    """Any checkpoint of the SD3 family; `guidance` is classifier-free, 1 for none."""

    kind: ClassVar[type[DiffusionPipeline]] = StableDiffusion3Pipeline
    multiple: ClassVar[int] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.guidance >= 1, f"guidance={self.guidance} is below 1; 1 means no classifier-free guidance")

    def load(self, device: torch.device) -> SD3Model:
        """The model on the device; raises ConfigError where its weights cannot be had."""
        return SD3Model(self.pipeline(device), self)
