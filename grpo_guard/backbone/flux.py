"""FLUX.1, of any size.

The T5 length is `t5_tokens`. The transformer sees a prompt as that many T5 tokens and one pooled
CLIP embedding. The tokens are cut or padded to that length, so all prompts are equally long and
need no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from diffusers import DiffusionPipeline, FluxPipeline, FluxTransformer2DModel
from jaxtyping import Float
from torch import Tensor, nn

from grpo_guard.pipeline.model import PackedModel, autocast
from grpo_guard.pipeline.recipe import PipelineRecipe
from grpo_guard.schema import Rule, component, require
from grpo_guard.types import Condition


class FluxPolicy(nn.Module):
    """The transformer's velocity of packed latents.

    Models that were distilled with guidance (dev) take it as an input; schnell takes none.
    """

    def __init__(
        self, transformer: FluxTransformer2DModel, dtype: torch.dtype, guidance: float, side: int
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.dtype = dtype
        self.guidance = guidance
        places = torch.stack(
            torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), dim=-1
        )
        ids = torch.cat([torch.zeros(side * side, 1), places.reshape(-1, 2).float()], dim=1)
        self.register_buffer("image_ids", ids.to(transformer.device), persistent=False)

    def forward(
        self, x: Float[Tensor, "R L C"], t: Float[Tensor, " R"], condition: Condition
    ) -> Float[Tensor, "R L C"]:
        """Return the velocities of packed latents x at times t in [0, 1]."""
        distilled = self.transformer.config.guidance_embeds
        with autocast(x, self.dtype):
            v: Tensor = self.transformer(
                hidden_states=x.to(self.dtype),
                encoder_hidden_states=condition.tokens.to(self.dtype),
                pooled_projections=condition.pooled.to(self.dtype),
                timestep=t,
                guidance=torch.full_like(t, self.guidance) if distilled else None,
                img_ids=self.image_ids,
                txt_ids=x.new_zeros(condition.tokens.shape[1], 3),
                return_dict=False,
            )[0]
        return v


class FluxModel(PackedModel):
    """A loaded FluxPipeline."""

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Condition:
        """Encode texts by the pipeline: T5 tokens and the pooled CLIP embedding."""
        tokens, pooled, _ = self.pipe.encode_prompt(
            list(texts),
            None,
            device=self.device,
            max_sequence_length=self.recipe.max_prompt_tokens,
        )
        return Condition(tokens=tokens, pooled=pooled)

    def make_policy(self, guidance: float) -> FluxPolicy:
        """Make a policy around the transformer."""
        return FluxPolicy(self.pipe.transformer, self.dtype, guidance, self.side)


@component
class Flux(PipelineRecipe):
    """Any checkpoint of the FLUX.1 family. `guidance` is the embedded one; schnell ignores it."""

    t5_tokens: Annotated[int, Rule(lambda x: 0 < x <= 512, "is outside 1..512", "128 is usual")]
    """The T5 length: how many T5 tokens a prompt has; 1 to 512.

    Longer prompts are cut, shorter ones padded; fewer tokens cost less time. The pipeline's default
    is 512, and schnell takes at most 256.
    """

    pipeline_class: ClassVar[type[DiffusionPipeline]] = FluxPipeline
    resolution_multiple: ClassVar[int] = 16
    call_arguments: ClassVar[str] = "guidance_scale={guidance}, max_sequence_length={t5_tokens}"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.guidance >= 0,
            f"guidance={self.guidance} is negative; give 0 or more, such as 3.5 for FLUX.1-dev",
        )

    @property
    def max_prompt_tokens(self) -> int:
        """The T5 length."""
        return self.t5_tokens

    def wrap(self, pipe: DiffusionPipeline, device: torch.device) -> FluxModel:
        """Make the model of a pipeline whose parts are on the device."""
        return FluxModel(pipe, self, device)
