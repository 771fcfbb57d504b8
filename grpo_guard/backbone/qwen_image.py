"""Qwen-Image (arXiv 2508.02324)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from diffusers import DiffusionPipeline, QwenImagePipeline, QwenImageTransformer2DModel
from jaxtyping import Float
from torch import Tensor, nn

from grpo_guard.pipeline.model import PackedModel, autocast
from grpo_guard.pipeline.recipe import PipelineRecipe
from grpo_guard.schema import Rule, component, require
from grpo_guard.types import Condition, map_tensors

NEGATIVE = " "
"""The negative prompt that the model's authors use; without one, the pipeline is unguided."""


class QwenImagePolicy(nn.Module):
    """The transformer's velocity of packed latents, with guidance if `guidance` is above 1.

    Guidance extrapolates from the negative prompt. The two prompts differ in length, so they are
    two calls, as in the pipeline: padding the shorter one in a common batch would change the
    rounding.
    """

    def __init__(
        self,
        transformer: QwenImageTransformer2DModel,
        dtype: torch.dtype,
        guidance: float,
        side: int,
        negative: Condition,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.dtype = dtype
        self.guidance = guidance
        self.side = side
        self.negative = negative

    def forward(
        self, x: Float[Tensor, "R L C"], t: Float[Tensor, " R"], condition: Condition
    ) -> Float[Tensor, "R L C"]:
        """Return the velocities of packed latents x at times t in [0, 1]."""
        v = self._velocity(x, t, condition)
        if self.guidance == 1:
            return v
        negative = map_tensors(self.negative, lambda row: row.expand(len(x), *row.shape[1:]))
        v = v.float()
        base = self._velocity(x, t, negative).float()
        return _match_norm(base + self.guidance * (v - base), v)

    def _velocity(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        with autocast(x, self.dtype):
            v: Tensor = self.transformer(
                hidden_states=x.to(self.dtype),
                encoder_hidden_states=condition.tokens.to(self.dtype),
                encoder_hidden_states_mask=condition.mask,
                timestep=t,
                img_shapes=[[(1, self.side, self.side)]] * len(x),
                return_dict=False,
            )[0]
        return v


def _match_norm(v: Float[Tensor, "R L C"], like: Float[Tensor, "R L C"]) -> Float[Tensor, "R L C"]:
    """Scale every token of v to the norm of the same token of `like`."""
    scaled: Tensor = v * (like.norm(dim=-1, keepdim=True) / v.norm(dim=-1, keepdim=True))
    return scaled


class QwenImageModel(PackedModel):
    """A loaded QwenImagePipeline. Its autoencoder is made for videos: an image is one frame."""

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Condition:
        """Encode texts by the pipeline: Qwen2.5-VL's last hidden states, without the template's."""
        tokens, mask = self.pipe.encode_prompt(
            list(texts),
            device=self.device,
            max_sequence_length=self.recipe.max_prompt_tokens,
        )
        return Condition(
            tokens=tokens,
            pooled=tokens.new_zeros(len(tokens), 0),
            mask=None if mask is None else mask.bool(),
        )

    def make_policy(self, guidance: float) -> QwenImagePolicy:
        """Make a policy around the transformer."""
        return QwenImagePolicy(
            self.pipe.transformer, self.dtype, guidance, self.side, self._negative
        )

    def rescale_latents(self, latents: Float[Tensor, "B C 1 h w"]) -> Float[Tensor, "B C 1 h w"]:
        """Undo the normalisation of latents, which has a mean and a deviation per channel."""
        config = self.pipe.vae.config
        mean = latents.new_tensor(config.latents_mean)[:, None, None, None]
        std = latents.new_tensor(config.latents_std)[:, None, None, None]
        return latents * std + mean

    def run_decoder(self, latents: Float[Tensor, "B C 1 h w"]) -> Float[Tensor, "B 3 H W"]:
        """Decode rescaled latents to the only frame, in [-1, 1]."""
        frames: Tensor = self.pipe.vae.decode(latents, return_dict=False)[0]
        return frames.squeeze(2)

    @cached_property
    def _negative(self) -> Condition:
        return self.encode([NEGATIVE])


@component
class QwenImage(PipelineRecipe):
    """Any checkpoint of Qwen-Image. `guidance` is classifier-free; 1 switches it off."""

    prompt_tokens: Annotated[
        int, Rule(lambda x: 0 < x <= 1024, "is outside 1..1024", "512 is usual")
    ]
    """Number of tokens at which a prompt is cut, without those of the template; 1 to 1024.

    Prompts are not padded to it. 512 is usual.
    """

    pipeline_class: ClassVar[type[DiffusionPipeline]] = QwenImagePipeline
    resolution_multiple: ClassVar[int] = 16
    call_arguments: ClassVar[str] = (
        f'negative_prompt="{NEGATIVE}", true_cfg_scale={{guidance}},'
        " max_sequence_length={prompt_tokens}"
    )
    # torch's channels_last is for four axes, and the kernels of a video autoencoder have five.
    vae_layout: ClassVar[torch.memory_format] = torch.contiguous_format

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.guidance >= 1,
            f"guidance={self.guidance} is below 1; give 1 for no classifier-free guidance, or more",
        )

    @property
    def max_prompt_tokens(self) -> int:
        """The number of tokens at which a prompt is cut."""
        return self.prompt_tokens

    def wrap(self, pipe: DiffusionPipeline, device: torch.device) -> QwenImageModel:
        """Make the model of a pipeline whose parts are on the device."""
        return QwenImageModel(pipe, self, device)
