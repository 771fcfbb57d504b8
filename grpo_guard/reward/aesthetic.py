"""How pleasing an image is, whatever its prompt: LAION's improved aesthetic predictor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from grpo_guard.reward import Scorer, make_rewards
from grpo_guard.reward._published import published_bytes
from grpo_guard.reward.clip import EncoderReward, ReadTowers, embed_images
from grpo_guard.reward.clip_formats import find_file, loading, read_tensors
from grpo_guard.schema import component, require
from grpo_guard.types import Prompt, Rewards

EMBEDDING_WIDTH = 768  # of ViT-L/14, on which the predictor was trained
PREDICTOR_FILE = "sac+logos+ava1-l14-linearMSE.pth"


@component
class Aesthetic(EncoderReward):
    """Predict the mark from 1 to 10 that people give an image.

    The predictor is a regression on the unit CLIP embedding of the image.
    """

    meanings: ClassVar[Mapping[str, str]] = {
        "{name}": "predicted mark from 1 to 10 that people give the picture, whatever its prompt",
    }
    model: str
    """Folder or hub id with the predictor's `sac+logos+ava1-l14-linearMSE.pth`."""
    clip: ReadTowers
    """Function of `clip_formats.py`, with its arguments, that reads OpenAI's ViT-L/14."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the encoder's weights and of the regression's."""
        encoder = published_bytes(self.clip.keywords["model"], self.dtype)
        return encoder + published_bytes(self.model, self.dtype)

    def load(self, device: torch.device) -> Scorer:
        """Load both models and return the scorer; the regression is float32 for every dtype."""
        path = find_file("model", self.model, PREDICTOR_FILE)
        predict = build_regression(EMBEDDING_WIDTH).to(device)
        with loading("model", self.model, PREDICTOR_FILE):
            state = read_tensors(path)
            predict.load_state_dict({key.removeprefix("layers."): x for key, x in state.items()})
        towers = self.clip(device=device, dtype=getattr(torch, self.dtype))
        require(
            towers.width == EMBEDDING_WIDTH,
            f"clip has embeddings of {towers.width}, not {EMBEDDING_WIDTH}; give OpenAI's ViT-L/14",
        )

        @torch.no_grad()
        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            marks = predict(embed_images(towers, images, self.microbatch)).squeeze(1)
            return make_rewards(images, **{self.name: marks})

        return score


def build_regression(width: int) -> nn.Sequential:
    """Return the published layers, width -> 1024 -> 128 -> 64 -> 16 -> 1, without activations.

    An identity stands in the place of each dropout, so that the layers keep their numbers.
    """
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
