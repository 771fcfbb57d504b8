"""Qwen-Image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline, QwenImagePipeline, QwenImageTransformer2DModel
from jaxtyping import Float
from torch import Tensor, nn

from grpo_guard.pipeline.model import Checkpoint, PackedModel, computing
from grpo_guard.types import Condition, component, map_tensors, require

NEGATIVE = " "  # as the model's authors ask; the pipeline itself has no default and goes unguided without one


class QwenImagePolicy(nn.Module):
    """The transformer's velocity of packed latents; with guidance above 1, extrapolated from the negative prompt's.

    The two prompts differ in length and are asked apart, as the pipeline does, so that neither is filled up.
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
        self.transformer, self.dtype, self.guidance = transformer, dtype, guidance
        self.side, self.negative = side, negative

    def forward(
        self, x: Float[Tensor, "R L C"], t: Float[Tensor, " R"], condition: Condition
    ) -> Float[Tensor, "R L C"]:
        """Velocity of packed latents x at times t in [0, 1]."""
        v = self._velocity(x, t, condition)
        if self.guidance == 1:
            return v
        negative = map_tensors(self.negative, lambda row: row.expand(len(x), *row.shape[1:]))
        v, base = v.float(), self._velocity(x, t, negative).float()
        return _of_norm(base + self.guidance * (v - base), v)

    def _velocity(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        with computing(x, self.dtype):
            v: Tensor = self.transformer(
                hidden_states=x.to(self.dtype),
                encoder_hidden_states=condition.tokens.to(self.dtype),
                encoder_hidden_states_mask=condition.mask,
                timestep=t,
                img_shapes=[[(1, self.side, self.side)]] * len(x),
                return_dict=False,
            )[0]
        return v


def _of_norm(v: Float[Tensor, "R L C"], like: Float[Tensor, "R L C"]) -> Float[Tensor, "R L C"]:
    """Every token of v at the length that it has in the other."""
    scaled: Tensor = v * (like.norm(dim=-1, keepdim=True) / v.norm(dim=-1, keepdim=True))
    return scaled


class QwenImageModel(PackedModel):
    """A loaded QwenImagePipeline, whose autoencoder is one of videos: an image is a single frame."""

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Condition:
        """Qwen2.5-VL's last hidden states without those of the template's head, as the pipeline computes them."""
        asked = {"device": self.device, "max_sequence_length": self.recipe.longest}
        tokens, mask = self.pipe.encode_prompt(list(texts), **asked)
        return Condition(
            tokens=tokens,
            pooled=tokens.new_zeros(len(tokens), 0),
            mask=None if mask is None else mask.bool(),
        )

    def velocity(self, guidance: float) -> QwenImagePolicy:
        """The policy under a guidance."""
        return QwenImagePolicy(
            self.pipe.transformer, self.dtype, guidance, self.side, self._negative
        )

    def scaled(self, latents: Float[Tensor, "B C 1 h w"]) -> Float[Tensor, "B C 1 h w"]:
        """Latents at the mean and the spread that the autoencoder gives each channel."""
        config = self.pipe.vae.config
        mean, std = (
            latents.new_tensor(x)[:, None, None, None]
            for x in (config.latents_mean, config.latents_std)
        )
        return latents * std + mean

    def decoded(self, latents: Float[Tensor, "B C 1 h w"]) -> Float[Tensor, "B 3 H W"]:
        """The autoencoder's only frame, in [-1, 1]."""
        frames: Tensor = self.pipe.vae.decode(latents, return_dict=False)[0]
        return frames.squeeze(2)

    @cached_property
    def _negative(self) -> Condition:
        return self.encode([NEGATIVE])


@component
class QwenImage(Checkpoint):
    """Any checkpoint of Qwen-Image; `guidance` is classifier-free, 1 for none. A prompt is cut at `prompt_tokens`."""

    prompt_tokens: int
    kind: ClassVar[type[DiffusionPipeline]] = QwenImagePipeline
    multiple: ClassVar[int] = 16
    call: ClassVar[str] = (
        f'negative_prompt="{NEGATIVE}", true_cfg_scale={{guidance}}, max_sequence_length={{prompt_tokens}}'
    )
    layout: ClassVar[torch.memory_format] = torch.contiguous_format

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.guidance >= 1,
            f"guidance={self.guidance} is below 1; 1 means no classifier-free guidance",
        )
        require(
            0 < self.prompt_tokens <= 1024,
            f"prompt_tokens={self.prompt_tokens} is outside 1..1024; 512 is usual",
        )

    @property
    def longest(self) -> int:
        """Tokens that a prompt may have."""
        return self.prompt_tokens

    def around(self, pipe: DiffusionPipeline, device: torch.device) -> QwenImageModel:
        """The model around a pipeline that is on the device."""
        return QwenImageModel(pipe, self, device)
