"""The colour of a detected object by CLIP (arXiv:2103.00020), as GenEval classifies colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from grpo_guard.reward._detection import ClassifyColors, Segment
from grpo_guard.reward._published import published_bytes
from grpo_guard.reward.clip import Precision, ReadTowers, Towers
from grpo_guard.schema import PositiveInt, component, require
from grpo_guard.world.detection import Detection

COLOR_CLASSES = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
)
TEMPLATES = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)
GREY = 0.6  # the benchmark's background, #999


@component
class ClipColors:
    """Classify an object as one of ten colours.

    The object is cut out of the image. The colour is the one whose texts ("a photo of a red cup")
    have the highest cosine with the cut-out.
    """

    clip: ReadTowers
    """Function of `clip_formats.py`, with its arguments, that reads the CLIP model."""
    microbatch: PositiveInt
    """Number of objects that are encoded at a time; lower it to save memory."""
    dtype: Precision
    """Dtype that the encoders compute in: float32, float16 or bfloat16."""

    def knows(self, color: str) -> bool:
        """Return whether this is one of the ten colours."""
        return color in COLOR_CLASSES

    @property
    def weight_bytes(self) -> int:
        """Bytes of the CLIP model's weights."""
        return published_bytes(self.clip.keywords["model"], self.dtype)

    def load(self, device: torch.device) -> ClassifyColors:
        """Load the model and return the classifier, which encodes the texts of a kind once."""
        towers = self.clip(device=device, dtype=getattr(torch, self.dtype))
        text_embeddings = cache(lambda name: _embed_color_texts(towers, name))

        @torch.no_grad()
        def classify(
            images: Float[Tensor, "B 3 H W"], objects: Sequence[tuple[int, Detection]]
        ) -> list[str]:
            colors: list[str] = []
            for start in range(0, len(objects), self.microbatch):
                chunk = objects[start : start + self.microbatch]
                pixels = torch.cat(
                    [towers.preprocess(cut_out(images[row], thing)[None]) for row, thing in chunk]
                )
                embeddings = normalize(towers.image(pixels).float(), dim=1)
                texts = torch.stack([text_embeddings(thing.name) for _, thing in chunk])
                cosine = texts @ embeddings[:, :, None]
                require(
                    bool(cosine.isfinite().all()),
                    f"dtype={self.dtype} is too narrow for this CLIP; choose float32",
                )
                colors += [COLOR_CLASSES[i] for i in cosine.argmax(1).flatten().tolist()]
            return colors

        return classify


def cut_out(image: Float[Tensor, "3 H W"], thing: Detection) -> Float[Tensor, "3 h w"]:
    """Return the box of an object, grey outside its outline if the outline is known."""
    x0, y0 = (max(0, math.floor(low)) for low in thing.box[:2])
    x1, y1 = (math.ceil(high) for high in thing.box[2:])
    crop = image[:, y0:y1, x0:x1]
    if isinstance(thing, Segment):
        return torch.where(thing.mask.to(image.device), crop, GREY)
    return crop


def _embed_color_texts(towers: Towers, name: str) -> Float[Tensor, "10 C"]:
    """Return an embedding of norm 1 per colour: the mean of its templates' unit embeddings."""
    texts = [
        template.format(color=color, name=name) for color in COLOR_CLASSES for template in TEMPLATES
    ]
    each = normalize(towers.text(towers.tokenize(texts)).float(), dim=1)
    return normalize(each.unflatten(0, (len(COLOR_CLASSES), len(TEMPLATES))).mean(1), dim=1)
