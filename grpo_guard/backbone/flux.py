"""FLUX.1, of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from jaxtyping import Float
from torch import Tensor, nn

from grpo_guard.pipeline import Checkpoint, PipelineModel, computing
from grpo_guard.types import Condition, component, require


class FluxPolicy(nn.Module):
    """The transformer's velocity of packed latents; guidance is an input of models that were distilled with it."""

    def __init__(self, transformer: FluxTransformer2DModel, dtype: torch.dtype, guidance: float, side: int) -> None:
        super().__init__()
        self.transformer, self.dtype, self.guidance = transformer, dtype, guidance
        places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), dim=-1)
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


class FluxModel(PipelineModel):
    """A loaded FluxPipeline; a latent is packed, (H / 16 * W / 16, 4 C): two by two places are one token."""

    def __init__(self, pipe: FluxPipeline, recipe: Flux, device: torch.device) -> None:
        self.side = recipe.resolution // (2 * pipe.vae_scale_factor)
        super().__init__(pipe, recipe, (self.side**2, pipe.transformer.config.in_channels), device)

    def times(self, steps: int) -> Float[Tensor, " T1"]:
        """The scheduler's sigmas, shifted by the number of tokens where its configuration says so."""
        config = self.pipe.scheduler.config
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        ends = config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=calculate_shift(self.shape[0], *ends))
        sigmas: Tensor = scheduler.sigmas
        return sigmas

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Condition:
        """T5 tokens and the pooled CLIP embedding, as the pipeline computes them."""
        asked = {"device": self.device, "max_sequence_length": self.recipe.t5_tokens}
        tokens, pooled, _ = self.pipe.encode_prompt(list(texts), None, **asked)
        return Condition(tokens=tokens, pooled=pooled)

    def velocity(self, guidance: float) -> FluxPolicy:
        """The policy under a guidance."""
        return FluxPolicy(self.pipe.transformer, self.dtype, guidance, self.side)

    def unpacked(self, latents: Float[Tensor, "B ..."]) -> Float[Tensor, "B C h w"]:
        """Latents as the autoencoder has them."""
        side, scale = self.recipe.resolution, self.pipe.vae_scale_factor
        unpacked: Tensor = self.pipe._unpack_latents(latents, side, side, scale)
        return unpacked


@component
class Flux(Checkpoint):
    """Any checkpoint of the FLUX.1 family; `guidance` is the embedded one, ignored by models without it (schnell)."""

    kind: ClassVar[type[DiffusionPipeline]] = FluxPipeline
    multiple: ClassVar[int] = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.guidance >= 0, f"guidance={self.guidance} is negative; FLUX.1-dev is distilled for about 3.5")

    def load(self, device: torch.device) -> FluxModel:
        """The model on the device; raises ConfigError where its weights cannot be had."""
        return FluxModel(self.pipeline(device), self, device)
