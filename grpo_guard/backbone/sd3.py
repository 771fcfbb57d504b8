"""Stable Diffusion 3 and 3.5, of any size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline, SD3Transformer2DModel, StableDiffusion3Pipeline
from jaxtyping import Float
from torch import Tensor, nn

from grpo_guard.pipeline.model import Checkpoint, PipelineModel, computing
from grpo_guard.types import Condition, component, require


class SD3Policy(nn.Module):
    """The transformer's velocity; with guidance above 1, extrapolated from the negative prompt's in one batch."""

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        dtype: torch.dtype,
        guidance: float,
        negative: Condition,
    ) -> None:
        super().__init__()
        self.transformer, self.dtype, self.guidance, self.negative = (
            transformer,
            dtype,
            guidance,
            negative,
        )

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
        given = (x.to(self.dtype), tokens.to(self.dtype), pooled.to(self.dtype), 1000 * t)
        with computing(x, self.dtype):
            v: Tensor = self.transformer(*given, return_dict=False)[0]
        return v


class SD3Model(PipelineModel):
    """A loaded StableDiffusion3Pipeline; a latent is (C, H / 8, W / 8)."""

    def __init__(self, pipe: StableDiffusion3Pipeline, recipe: SD3, device: torch.device) -> None:
        side = recipe.resolution // pipe.vae_scale_factor
        super().__init__(pipe, recipe, (pipe.transformer.config.in_channels, side, side), device)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Condition:
        """CLIP (and T5, where there is one) tokens and pooled CLIP embeddings, as the pipeline computes them."""
        tokens, _, pooled, _ = self.pipe.encode_prompt(
            list(texts), None, None, self.device, do_classifier_free_guidance=False,
            max_sequence_length=self.recipe.longest,
        )  # fmt: skip
        return Condition(tokens=tokens, pooled=pooled)

    def velocity(self, guidance: float) -> SD3Policy:
        """The policy under a guidance."""
        return SD3Policy(self.pipe.transformer, self.dtype, guidance, self._negative)

    @cached_property
    def _negative(self) -> Condition:
        return self.encode([""])


@component
class SD3(Checkpoint):
    """Any checkpoint of the SD3 family; `guidance` is classifier-free, 1 for none.

    `t5_tokens` is the length of the T5 part of a prompt.
    """

    t5_tokens: int
    kind: ClassVar[type[DiffusionPipeline]] = StableDiffusion3Pipeline
    multiple: ClassVar[int] = 8
    call: ClassVar[str] = "guidance_scale={guidance}, max_sequence_length={t5_tokens}"
    dispensable: ClassVar[frozenset[str]] = frozenset({"text_encoder_3", "tokenizer_3"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.guidance >= 1,
            f"guidance={self.guidance} is below 1; 1 means no classifier-free guidance",
        )

    @property
    def longest(self) -> int:
        """Tokens that a prompt may have."""
        return self.t5_tokens

    def around(self, pipe: DiffusionPipeline, device: torch.device) -> SD3Model:
        """The model around a pipeline that is on the device."""
        return SD3Model(pipe, self, device)
