"""Rewards by a CLIP model: the cosine between an image and its prompt (arXiv:2103.00020)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard.reward import Scorer, make_rewards
from grpo_guard.reward._published import published_bytes
from grpo_guard.schema import Advice, Name, Positive, PositiveInt, Rule, component, record
from grpo_guard.types import Prompt, Rewards

Transform = Callable[[Tensor], Tensor]
"""A function of one batch of images, pixels or tokens, with no state of its own."""
Measure = Callable[[Float[Tensor, " B"], float], Float[Tensor, " B"]]
"""(cosines, exp(logit_scale)) -> scores."""
Precision = Literal["float32", "float16", "bfloat16"]
"""Name of the dtype that a scorer computes in."""


@record
class Towers:
    """The text encoder and the image encoder of a CLIP model, on one device."""

    tokenize: Callable[[list[str]], Int[Tensor, "N L"]]
    """N texts -> tokens, on the CPU."""
    text: Transform
    """Tokens (N, L) on any device -> embeddings (N, width), not normalized."""
    preprocess: Transform
    """Images (B, 3, H, W) in [0, 1] of any size -> pixels (B, 3, S, S)."""
    image: Transform
    """Pixels (B, 3, S, S) on any device -> embeddings (B, width), not normalized."""
    width: int
    """Length of an embedding."""
    gain: float
    """exp(logit_scale): the factor of the cosine in the model's logits."""


ReadTowers = Annotated[
    partial[Towers], Rule(lambda x: "model" in x.keywords, "has no model", "add the key model")
]
"""A function of `clip_formats.py` that lacks only `device` and `dtype`; has `model` by keyword."""


@component
class EncoderReward:
    """Base of the rewards that encode images with a network. They accept every prompt."""

    microbatch: PositiveInt
    """Number of images or texts that are encoded at a time; lower it to save memory."""
    dtype: Precision
    """Dtype that the encoders compute in: float32, float16 or bfloat16. Scores are float32."""
    name: Name
    """Name of the score in the metrics: `reward/<name>`, `eval/gold/<name>`."""
    compares: ClassVar[bool] = False

    def accepts(self, prompt: Prompt) -> bool:
        """Accept every prompt."""
        return True


@component
class ClipReward(EncoderReward):
    """Score the cosine between the embeddings of an image and of its prompt."""

    meanings: ClassVar[Mapping[str, str]] = {
        "{name}": "how well the picture fits its prompt by the learned scorer {model},"
        " on a scale of its own",
    }
    model: str
    """Folder, hub id or name of a shipped asset with the weights."""
    read: Callable[..., Towers]
    """Function of `clip_formats.py` that reads the format in which the model is published."""
    measure: Measure
    """Function of the cosine that gives the score: `pickscore`, `clipscore` or `hps`."""
    scale: Annotated[Positive | None, Advice("give the number that scores are divided by, or null")]
    """Positive number that scores are divided by; null leaves them as they are."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of both encoders' weights."""
        return published_bytes(self.model, self.dtype)

    def load(self, device: torch.device) -> Scorer:
        """Load the model and return the scorer, which encodes a text once for all its images."""
        towers = self.read(model=self.model, device=device, dtype=getattr(torch, self.dtype))

        @torch.no_grad()
        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            texts, rows = unique_texts(prompts)
            text_embeddings = self._embed_texts(towers, texts)[rows]
            cosine = (text_embeddings * embed_images(towers, images, self.microbatch)).sum(1)
            scores = self.measure(cosine, towers.gain) / (self.scale or 1)
            return make_rewards(images, **{self.name: scores})

        return score

    def _embed_texts(self, towers: Towers, texts: list[str]) -> Float[Tensor, "N C"]:
        chunks = towers.tokenize(texts).split(self.microbatch)
        return torch.cat([_normalize(towers.text(tokens)) for tokens in chunks])


def pickscore(cosine: Float[Tensor, " B"], gain: float) -> Float[Tensor, " B"]:
    """Return `exp(logit_scale) cos` (PickScore, arXiv:2305.01569).

    Scores are about 20 to 24 with the published weights.
    """
    return gain * cosine


def clipscore(cosine: Float[Tensor, " B"], gain: float) -> Float[Tensor, " B"]:
    """Return `2.5 max(cos, 0)` (CLIPScore, arXiv:2104.08718).

    The paper puts "A photo depicts" before a text; the prompt is scored as it is here.
    """
    return 2.5 * cosine.clamp(min=0)


def hps(cosine: Float[Tensor, " B"], gain: float) -> Float[Tensor, " B"]:
    """Return `cos`, as the published code of HPSv2 does (arXiv:2306.09341).

    The paper's tables show a hundred times that.
    """
    return cosine


def embed_images(
    towers: Towers, images: Float[Tensor, "B 3 H W"], microbatch: int
) -> Float[Tensor, "B C"]:
    """Return float32 embeddings of norm 1 of images in [0, 1], encoded `microbatch` at a time."""
    chunks = images.split(microbatch)
    return torch.cat([_normalize(towers.image(towers.preprocess(chunk))) for chunk in chunks])


def unique_texts(prompts: Sequence[Prompt]) -> tuple[list[str], list[int]]:
    """Return the distinct texts of prompts, and the index into them for each prompt."""
    texts = list(dict.fromkeys(prompt.text for prompt in prompts))
    index = {text: i for i, text in enumerate(texts)}
    return texts, [index[prompt.text] for prompt in prompts]


def _normalize(rows: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
    return torch.nn.functional.normalize(rows.float(), dim=1)
