"""FLUX.1, of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline, FluxPipeline, FluxTransformer2DModel
from jaxtyping import Float
from torch import Tensor, nn

from grpo_guard.pipeline.model import Checkpoint, PackedModel, computing
from grpo_guard.types import Condition, component, require


class FluxPolicy(nn.Module):
    """The transformer's velocity of packed latents; guidance is an input of models that were distilled with it."""

    def __init__(
        self, transformer: FluxTransformer2DModel, dtype: torch.dtype, guidance: float, side: int
    ) -> None:
        super().__init__()
        self.transformer, self.dtype, self.guidance = transformer, dtype, guidance
        places = torch.stack(
            torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), dim=-1
        )
        ids = torch.cat([torch.zeros(side * side, 1), places.reshape(-1, 2).float()], dim=1)
        self.register_buffer("image_ids", ids.to(transformer.device), persistent=False)

    def forward(
        self, x: Float[Tensor, "R L C"], t: Float[Tensor, " R"], condition: Condition
    ) -> Float[Tensor, "R L C"]:
        """Velocity of packed latents x at times t in [0, 1]."""
        distilled = self.transformer.config.guidance_embeds
        with computing(x, self.dtype):
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
        """T5 tokens and the pooled CLIP embedding, as the pipeline computes them."""
        asked = {"device": self.device, "max_sequence_length": self.recipe.longest}
        tokens, pooled, _ = self.pipe.encode_prompt(list(texts), None, **asked)
        return Condition(tokens=tokens, pooled=pooled)

    def velocity(self, guidance: float) -> FluxPolicy:
        """The policy under a guidance."""
        return FluxPolicy(self.pipe.transformer, self.dtype, guidance, self.side)


@component
class Flux(Checkpoint):
    """Any checkpoint of the FLUX.1 family; `guidance` is the embedded one, ignored by models without it (schnell).

    `t5_tokens` is the length of every prompt.
    """

    t5_tokens: int
    kind: ClassVar[type[DiffusionPipeline]] = FluxPipeline
    multiple: ClassVar[int] = 16
    call: ClassVar[str] = "guidance_scale={guidance}, max_sequence_length={t5_tokens}"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.guidance >= 0,
            f"guidance={self.guidance} is negative; FLUX.1-dev is distilled for about 3.5",
        )

    @property
    def longest(self) -> int:
        """Tokens that a prompt may have."""
        return self.t5_tokens

    def around(self, pipe: DiffusionPipeline, device: torch.device) -> FluxModel:
        """The model around a pipeline that is on the device."""
        return FluxModel(pipe, self, device)
