"""How well a picture fits its text, by the cosine between the two encoders of a CLIP model (arXiv:2103.00020)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard.reward import Scorer, scored
from grpo_guard.types import Prompt, Rewards, component, record, require

Encode = Callable[[Tensor], Tensor]
Measure = Callable[[Float[Tensor, " B"], float], Float[Tensor, " B"]]
Dtype = Literal["float32", "float16", "bfloat16"]


@record
class Towers:
    """A text encoder and an image encoder that meet in a space of `width`; `gain` is exp(logit_scale).

    `preprocess` takes images in [0, 1] of any size; tokens and pixels may be on any device.
    """

    tokenize: Callable[[list[str]], Int[Tensor, "N L"]]
    text: Encode
    preprocess: Encode
    image: Encode
    width: int
    gain: float


@component
class Encoded:
    """What rewards that encode pictures share: any prompt will do, and images are encoded `microbatch` at a time.

    `dtype` is what the encoders compute in; scores are float32.
    """

    microbatch: int
    dtype: Dtype
    name: str
    compares: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_microbatch(self.microbatch)

    def accepts(self, prompt: Prompt) -> bool:
        """Any text will do, be it read or not."""
        return True


@component
class ClipReward(Encoded):
    """A `measure` of the cosine between text and picture, divided by `scale` unless that is null.

    `read` says in which format `model` is published.
    """

    model: str
    read: Callable[..., Towers]
    measure: Measure
    scale: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        scale = self.scale
        require(
            scale is None or scale > 0,
            f"scale={scale} is not positive; give what scores are divided by, or null",
        )

    def load(self, device: torch.device) -> Scorer:
        """The scorer; each image meets its own text, which is encoded once however many images it has."""
        towers = self.read(model=self.model, device=device, dtype=getattr(torch, self.dtype))

        @torch.no_grad()
        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            texts, rows = unique(prompts)
            cosine = (
                self._encoded(towers, texts)[rows] * embedded(towers, images, self.microbatch)
            ).sum(1)
            return scored(
                images, **{self.name: self.measure(cosine, towers.gain) / (self.scale or 1)}
            )

        return score

    def _encoded(self, towers: Towers, texts: list[str]) -> Float[Tensor, "N C"]:
        return torch.cat(
            [_unit(towers.text(tokens)) for tokens in towers.tokenize(texts).split(self.microbatch)]
        )


def pickscore(cosine: Float[Tensor, " B"], gain: float) -> Float[Tensor, " B"]:
    """`exp(logit_scale) cos`, about 20 to 24 with the published weights (PickScore, arXiv:2305.01569)."""
    return gain * cosine


def clipscore(cosine: Float[Tensor, " B"], gain: float) -> Float[Tensor, " B"]:
    """`2.5 max(cos, 0)` (CLIPScore, arXiv:2104.08718), of the prompt as it is, without "A photo depicts" before it."""
    return 2.5 * cosine.clamp(min=0)


def hps(cosine: Float[Tensor, " B"], gain: float) -> Float[Tensor, " B"]:
    """`cos`, as HPSv2's own code scores (arXiv:2306.09341); its tables show a hundred times that."""
    return cosine


def embedded(
    towers: Towers, images: Float[Tensor, "B 3 H W"], microbatch: int
) -> Float[Tensor, "B C"]:
    """Unit embeddings of images in [0, 1], float32, made a few at a time."""
    return torch.cat(
        [_unit(towers.image(towers.preprocess(chunk))) for chunk in images.split(microbatch)]
    )


def unique(prompts: Sequence[Prompt]) -> tuple[list[str], list[int]]:
    """The texts of prompts without repeats, and which of them each prompt has."""
    row = {text: i for i, text in enumerate(dict.fromkeys(prompt.text for prompt in prompts))}
    return list(row), [row[prompt.text] for prompt in prompts]


def check_microbatch(microbatch: int) -> None:
    """Refuse a microbatch of nothing."""
    require(
        microbatch > 0,
        f"microbatch={microbatch} is not positive; give the images encoded at a time",
    )


def _unit(rows: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
    return torch.nn.functional.normalize(rows.float(), dim=1)
