"""How well a picture fits its prompt, in the words of a vision-language model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.remote.chat import Judge, data_urls
from grpo_guard.reward import Scorer, scored
from grpo_guard.types import Prompt, Rewards, component


@component
class VlmScore(Judge):
    """A model's mark for each picture by itself, from 0 at `low` to 1 at `high` (in the manner of arXiv:2503.05236).

    A picture about which there is no answer after the last round has failed: NaN, and counted.
    """

    def load(self, device: torch.device) -> Scorer:
        """The scorer; a picture that is not finite is not asked about."""
        ask = self.open()

        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            rows = images.isfinite().flatten(1).all(1).nonzero().flatten().tolist()
            urls = data_urls(images[rows])
            marks = torch.full((len(images),), math.nan)
            marks[rows] = ask(
                [self.about(prompts[i], url) for i, url in zip(rows, urls, strict=True)]
            )
            return scored(images, **{self.name: marks})

        return score
