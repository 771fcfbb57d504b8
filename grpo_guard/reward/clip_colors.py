"""The colour of an object by CLIP (arXiv:2103.00020), shown nothing else of the picture, as GenEval tells colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from grpo_guard.reward.clip import Dtype, Towers, check_microbatch
from grpo_guard.reward.geneval import Color, Segment
from grpo_guard.types import component, require
from grpo_guard.world.checker import Detection

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)
GREY = 0.6  # of the background, #999


@component
class ClipColors:
    """The likeliest of ten colours, by the cosine between a cut-out object and its name with each of them.

    `clip` reads the model, whose encoders compute in `dtype`; objects are encoded `microbatch` at a time.
    """

    clip: Callable[..., Towers]
    microbatch: int
    dtype: Dtype

    def __post_init__(self) -> None:
        check_microbatch(self.microbatch)

    def knows(self, color: str) -> bool:
        """Whether it is one of the ten."""
        return color in COLORS

    def load(self, device: torch.device) -> Color:
        """The classifier; each kind of object has its texts encoded once."""
        towers = self.clip(device=device, dtype=getattr(torch, self.dtype))
        named = cache(lambda name: _texts(towers, name))

        @torch.no_grad()
        def tell(
            images: Float[Tensor, "B 3 H W"], things: Sequence[tuple[int, Detection]]
        ) -> list[str]:
            told: list[str] = []
            for start in range(0, len(things), self.microbatch):
                some = things[start : start + self.microbatch]
                pixels = torch.cat(
                    [towers.preprocess(cutout(images[row], thing)[None]) for row, thing in some]
                )
                shown = normalize(towers.image(pixels).float(), dim=1)
                cosine = torch.stack([named(thing.name) for _, thing in some]) @ shown[:, :, None]
                require(
                    bool(cosine.isfinite().all()),
                    f"dtype={self.dtype} is too narrow for this CLIP; choose float32",
                )
                told += [COLORS[i] for i in cosine.argmax(1).flatten().tolist()]
            return told

        return tell


def cutout(image: Float[Tensor, "3 H W"], thing: Detection) -> Float[Tensor, "3 h w"]:
    """The box of a thing, grey wherever its outline is known and it is not."""
    x0, y0 = (max(0, math.floor(low)) for low in thing.box[:2])
    x1, y1 = (math.ceil(high) for high in thing.box[2:])
    crop = image[:, y0:y1, x0:x1]
    return (
        torch.where(thing.mask.to(image.device), crop, GREY) if isinstance(thing, Segment) else crop
    )


def _texts(towers: Towers, name: str) -> Float[Tensor, "10 C"]:
    """Of each colour, the unit mean of its texts' unit embeddings."""
    texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
    each = normalize(towers.text(towers.tokenize(texts)).float(), dim=1)
    return normalize(each.unflatten(0, (len(COLORS), len(TEMPLATES))).mean(1), dim=1)
