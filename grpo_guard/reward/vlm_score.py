"""Marks for images by a vision-language model that looks at one image at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.remote.chat import VlmJudge, encode_data_urls
from grpo_guard.reward import Scorer, make_rewards
from grpo_guard.schema import component
from grpo_guard.types import Prompt, Rewards


@component
class VlmScore(VlmJudge):
    """Score an image by the model's mark for it, from 0 at `low` to 1 at `high`.

    This is done in the manner of arXiv:2503.05236. An image has failed if there is no answer about
    it after the last round.
    """

    meanings: ClassVar[Mapping[str, str]] = {
        "{name}": "mark of a vision-language model for the picture, from 0 to 1",
    }

    def load(self, device: torch.device) -> Scorer:
        """Check the endpoints and return the scorer, which asks nothing about broken images."""
        ask = self.open()

        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            intact = images.isfinite().flatten(1).all(1).nonzero().flatten().tolist()
            urls = encode_data_urls(images[intact])
            questions = [
                self.make_question(prompts[row], url) for row, url in zip(intact, urls, strict=True)
            ]
            marks = torch.full((len(images),), math.nan)
            marks[intact] = ask(questions)
            return make_rewards(images, **{self.name: marks})

        return score
