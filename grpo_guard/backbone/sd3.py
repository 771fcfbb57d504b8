"""Stable Diffusion 3 and 3.5, of any size.

The T5 length is `t5_tokens`. The transformer sees a prompt as its CLIP tokens (77 in the published
checkpoints, each with the features of both CLIP encoders) followed by `t5_tokens` tokens of T5.
Both parts are cut or padded to their lengths, so all prompts are equally long and need no mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar

import torch
from diffusers import DiffusionPipeline, SD3Transformer2DModel, StableDiffusion3Pipeline
from jaxtyping import Float
from torch import Tensor, nn

from grpo_guard.pipeline.model import PipelineModel, autocast
from grpo_guard.pipeline.recipe import PipelineRecipe
from grpo_guard.schema import Rule, component, require
from grpo_guard.types import Condition


class SD3Policy(nn.Module):
    """The transformer's velocity, with classifier-free guidance if `guidance` is above 1.

    Guidance extrapolates from the negative prompt, whose velocity is computed in the same batch.
    """

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        dtype: torch.dtype,
        guidance: float,
        negative: Condition,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.dtype = dtype
        self.guidance = guidance
        self.negative = negative

    def forward(
        self, x: Float[Tensor, "R C H W"], t: Float[Tensor, " R"], condition: Condition
    ) -> Float[Tensor, "R C H W"]:
        """Return the velocities of latents x at times t in [0, 1]."""
        if self.guidance == 1:
            return self._velocity(x, t, condition.tokens, condition.pooled)
        tokens = torch.cat([condition.tokens, self.negative.tokens.expand_as(condition.tokens)])
        pooled = torch.cat([condition.pooled, self.negative.pooled.expand_as(condition.pooled)])
        v, base = self._velocity(torch.cat([x, x]), torch.cat([t, t]), tokens, pooled).chunk(2)
        return base + self.guidance * (v - base)

    def _velocity(self, x: Tensor, t: Tensor, tokens: Tensor, pooled: Tensor) -> Tensor:
        with autocast(x, self.dtype):
            v: Tensor = self.transformer(
                x.to(self.dtype),
                tokens.to(self.dtype),
                pooled.to(self.dtype),
                1000 * t,  # this transformer counts time from 0 to 1000
                return_dict=False,
            )[0]
        return v


class SD3Model(PipelineModel):
    """A loaded StableDiffusion3Pipeline; a latent is (C, H / 8, W / 8)."""

    def __init__(self, pipe: StableDiffusion3Pipeline, recipe: SD3, device: torch.device) -> None:
        config = pipe.transformer.config
        side = recipe.resolution // pipe.vae_scale_factor
        patch_pixels = config.patch_size * pipe.vae_scale_factor
        largest = config.pos_embed_max_size * patch_pixels
        require(
            recipe.resolution % patch_pixels == 0 and recipe.resolution <= largest,
            f"resolution={recipe.resolution} does not fit {recipe.model}; give a multiple of"
            f" {patch_pixels}, at most {largest}",
        )
        super().__init__(pipe, recipe, (config.in_channels, side, side), device)

    @property
    def tokens(self) -> int:
        """Image tokens of one latent: its patches."""
        patches: int = self.shape[-1] // self.pipe.transformer.config.patch_size
        return patches**2

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Condition:
        """Encode texts by the pipeline: CLIP and T5 tokens, and pooled CLIP embeddings."""
        tokens, _, pooled, _ = self.pipe.encode_prompt(
            list(texts), None, None, self.device, do_classifier_free_guidance=False,
            max_sequence_length=self.recipe.max_prompt_tokens,
        )  # fmt: skip
        return Condition(tokens=tokens, pooled=pooled)

    def make_policy(self, guidance: float) -> SD3Policy:
        """Make a policy around the transformer, with the empty prompt as the negative one."""
        return SD3Policy(self.pipe.transformer, self.dtype, guidance, self._negative)

    @cached_property
    def _negative(self) -> Condition:
        return self.encode([""])


@component
class SD3(PipelineRecipe):
    """Any checkpoint of the SD3 family. `guidance` is classifier-free; 1 switches it off."""

    t5_tokens: Annotated[int, Rule(lambda x: 0 <= x <= 512, "is outside 0..512", "128 is usual")]
    """The T5 length: how many T5 tokens a prompt has, besides its CLIP tokens; 0 to 512.

    Longer prompts are cut, shorter ones padded; fewer tokens cost less time. The pipeline's default
    is 256. Checkpoints without T5 (sd3_tiny) take 0: any other number adds as many tokens of zeros,
    which changes their images.
    """

    pipeline_class: ClassVar[type[DiffusionPipeline]] = StableDiffusion3Pipeline
    resolution_multiple: ClassVar[int] = 8
    call_arguments: ClassVar[str] = "guidance_scale={guidance}, max_sequence_length={t5_tokens}"
    optional_parts: ClassVar[frozenset[str]] = frozenset({"text_encoder_3", "tokenizer_3"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.guidance >= 1,
            f"guidance={self.guidance} is below 1; give 1 for no classifier-free guidance, or more",
        )

    @property
    def max_prompt_tokens(self) -> int:
        """The T5 length, without the CLIP tokens."""
        return self.t5_tokens

    def encoded_tokens(self, configs: Mapping[str, Mapping[str, Any]]) -> int:
        """Return the tokens of an encoded prompt: those of CLIP, then those of T5."""
        clip: int = configs["text_encoder"]["max_position_embeddings"]
        return clip + self.t5_tokens

    def wrap(self, pipe: DiffusionPipeline, device: torch.device) -> SD3Model:
        """Make the model of a pipeline whose parts are on the device."""
        return SD3Model(pipe, self, device)
