"""How unlike the images of one prompt are; diversity is lost when a policy collapses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grpo_guard.reward import Scorer, make_rewards
from grpo_guard.reward._published import published_bytes
from grpo_guard.reward.clip import EncoderReward, ReadTowers, Transform, embed_images, unique_texts
from grpo_guard.schema import component
from grpo_guard.types import Prompt, Rewards


@component
class Diversity(EncoderReward):
    """Score an image by its mean CLIP distance, 1 - cos, to the other images of its text.

    The score is 0 if all images of a text are alike. An image that is the only one of its text
    gets the mean score of those that are not, so that it moves no mean. If every image is the only
    one of its text, as in an evaluation with one image per prompt, no image has a score.
    """

    meanings: ClassVar[Mapping[str, str]] = {
        "{name}": "how unlike the pictures of one prompt are; 0 if all are alike",
    }
    clip: ReadTowers
    """Function of `clip_formats.py`, with its arguments, that reads the CLIP model."""
    compares: ClassVar[bool] = True

    @property
    def weight_bytes(self) -> int:
        """Bytes of the CLIP model's weights."""
        return published_bytes(self.clip.keywords["model"], self.dtype)

    def load(self, device: torch.device) -> Scorer:
        """Load the encoder and return the scorer; broken images are not compared with others."""
        encode = self.load_encoder(device)

        @torch.no_grad()
        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            intact = images.isfinite().flatten(1).all(1)
            texts = torch.tensor(unique_texts(prompts)[1], device=images.device)
            partners = (texts[:, None] == texts) & intact & intact[:, None]
            scores = mean_distances(encode(images), partners.fill_diagonal_(False))
            return make_rewards(images, **{self.name: scores})

        return score

    def load_encoder(self, device: torch.device) -> Transform:
        """Load the encoder: images (B, 3, H, W) in [0, 1] -> embeddings (B, C) of norm 1."""
        towers = self.clip(device=device, dtype=getattr(torch, self.dtype))
        return lambda images: embed_images(towers, images, self.microbatch).to(images.device)


def mean_distances(
    embeddings: Float[Tensor, "B C"], partners: Bool[Tensor, "B B"]
) -> Float[Tensor, " B"]:
    """Return the mean of 1 - cos over each row's partners.

    A row without partners gets the mean of the rows with partners, or NaN if there are none.
    """
    count = partners.sum(1)
    mean = ((1 - embeddings @ embeddings.T) * partners).sum(1) / count.clamp(min=1)
    paired = mean[count > 0]
    return torch.where(count > 0, mean, paired.mean() if len(paired) else math.nan)
