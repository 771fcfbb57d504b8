"""How pleasing a picture is, whatever its text: LAION's improved aesthetic predictor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from grpo_guard.reward import Scorer, scored
from grpo_guard.reward.clip import Encoded, Towers, embedded
from grpo_guard.reward.clip_formats import loading, stored, weights
from grpo_guard.types import Prompt, Rewards, component, require

WIDTH = 768  # of the embeddings of ViT-L/14
FILE = "sac+logos+ava1-l14-linearMSE.pth"


@component
class Aesthetic(Encoded):
    """A regression on the picture's unit CLIP embedding to people's marks from 1 to 10.

    `model` is a folder or a hub id that holds `sac+logos+ava1-l14-linearMSE.pth`, `clip` reads OpenAI's ViT-L/14.
    """

    model: str
    clip: Callable[..., Towers]

    def load(self, device: torch.device) -> Scorer:
        """The scorer; the regression is float32 whatever the encoder's dtype."""
        path, judge = weights("model", self.model, FILE), head(WIDTH).to(device)
        with loading("model", self.model, FILE):
            judge.load_state_dict(
                {key.removeprefix("layers."): value for key, value in stored(path).items()}
            )
        towers = self.clip(device=device, dtype=getattr(torch, self.dtype))
        require(
            towers.width == WIDTH,
            f"clip has embeddings of {towers.width}, not {WIDTH}; give OpenAI's ViT-L/14",
        )

        @torch.no_grad()
        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            return scored(
                images, **{self.name: judge(embedded(towers, images, self.microbatch)).squeeze(1)}
            )

        return score


def head(width: int) -> nn.Sequential:
    """width -> 1024 -> 128 -> 64 -> 16 -> 1, all linear; an identity stands where training had a dropout."""
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.Identity(),
        nn.Linear(1024, 128),
        nn.Identity(),
        nn.Linear(128, 64),
        nn.Identity(),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )
