"""How unlike each other the pictures of one text are: what is lost where a policy collapses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grpo_guard.reward import Scorer, scored
from grpo_guard.reward.clip import Encode, Encoded, Towers, embedded, unique
from grpo_guard.types import Prompt, Rewards, component


@component
class Diversity(Encoded):
    """A picture's mean distance, 1 - cos of CLIP's embeddings, to the others of its text that are scored with it.

    0 where all are alike. A picture alone of its text takes the mean of those that are not, so that it moves no mean;
    where all are alone, as in an evaluation with one picture of each prompt, there is no score. `clip` reads the model.
    """

    clip: Callable[..., Towers]
    compares: ClassVar[bool] = True

    def load(self, device: torch.device) -> Scorer:
        """The scorer; a picture that is not finite is none of the others."""
        encode = self.encoder(device)

        @torch.no_grad()
        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            whole = images.isfinite().flatten(1).all(1)
            texts = torch.tensor(unique(prompts)[1], device=images.device)
            together = (texts[:, None] == texts) & whole & whole[:, None]
            return scored(
                images, **{self.name: distances(encode(images), together.fill_diagonal_(False))}
            )

        return score

    def encoder(self, device: torch.device) -> Encode:
        """(B 3 H W) images in [0, 1] -> (B C) unit embeddings, on the images' device."""
        towers = self.clip(device=device, dtype=getattr(torch, self.dtype))
        return lambda images: embedded(towers, images, self.microbatch).to(images.device)


def distances(
    embeddings: Float[Tensor, "B C"], together: Bool[Tensor, "B B"]
) -> Float[Tensor, " B"]:
    """The mean of 1 - cos over each row's partners; rows without any get the mean of those with some, or NaN."""
    count = together.sum(1)
    mean = ((1 - embeddings @ embeddings.T) * together).sum(1) / count.clamp(min=1)
    paired = mean[count > 0]
    return torch.where(count > 0, mean, paired.mean() if len(paired) else math.nan)
