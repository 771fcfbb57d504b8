"""COCO's 80 kinds of objects with their outlines, found by Mask2Former (arXiv:2112.01527) as GenEval's detector.

Scores, boxes and masks are those of the detector that GenEval was published with: a query's chance of a kind, times
how certain its mask is of its own pixels; no object is dropped because it overlaps another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

from grpo_guard.assets import locate
from grpo_guard.reward.clip import Dtype, check_microbatch
from grpo_guard.reward.clip_formats import levels, loading
from grpo_guard.reward.geneval import Detect, Segment
from grpo_guard.types import component, record, require

FILES = "config.json, preprocessor_config.json and model.safetensors"
_KINDS = """
person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,bench
bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard
sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon
bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table
toilet,tv,laptop,computer mouse,tv remote,computer keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book
clock,vase,scissors,teddy bear,hair drier,toothbrush
"""
NAMES = tuple(_KINDS.strip().replace("\n", ",").split(","))  # as GenEval's prompts have them
_CALLED: Mapping[str, str] = {  # what checkpoints say, to what GenEval says
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "television": "tv",
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "hair dryer": "hair drier",
}
_BUFFERS = ("relative_position_index", "empty_weight")  # made anew wherever they are wanted


@component
class Mask2Former:
    """Objects with a score above `threshold`, of each kind in a picture the `most` certain ones.

    `model` is a folder or a hub id. Pictures are shown with `side` px on their shorter side, or where that is null as
    the model's own image processor has it. `dtype` is what the model computes in; scores and masks are float32's.
    """

    model: str
    side: int | None
    threshold: float
    most: int
    microbatch: int
    dtype: Dtype

    def __post_init__(self) -> None:
        check_microbatch(self.microbatch)
        require(
            self.side is None or self.side >= 32,
            f"side={self.side} is too small; give 32 px or more, or null",
        )
        require(
            0 <= self.threshold < 1,
            f"threshold={self.threshold} is outside [0, 1); the benchmark's is 0.3",
        )
        require(
            self.most > 0,
            f"most={self.most} is not positive; the benchmark keeps 16 objects of a kind",
        )

    def knows(self, name: str) -> bool:
        """Whether it is one of the 80."""
        return name in NAMES

    def load(self, device: torch.device) -> Detect:
        """The detector on the device; raises ConfigError where the weights are missing or of other kinds."""
        prepare, model = self._processor(), self._model()
        kinds = _kinds(self.model, model.config.id2label)
        model.requires_grad_(False).to(device, getattr(torch, self.dtype))

        @torch.no_grad()
        def detect(images: Float[Tensor, "B 3 H W"]) -> list[list[Segment]]:
            chunks = images.split(self.microbatch)
            return [
                self._seen(kinds, queries)
                for chunk in chunks
                for queries in _queries(prepare, model, chunk)
            ]

        return detect

    def _processor(self) -> Any:
        from transformers import Mask2FormerImageProcessor

        size = (
            {"shortest_edge": self.side, "longest_edge": self.side * 5 // 3} if self.side else None
        )
        shown: dict[str, Any] = {"pad_size": None} | ({"size": size} if size else {})
        with loading("model", self.model, FILES):
            return Mask2FormerImageProcessor.from_pretrained(locate("model", self.model), **shown)

    def _model(self) -> Any:
        from transformers import Mask2FormerForUniversalSegmentation as Published

        source = locate("model", self.model)
        with loading("model", self.model, FILES):
            found: Any = Published.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True
            )
        model, report = found
        wrong = [
            key for kind in ("missing_keys", "unexpected_keys") for key in sorted(report[kind])
        ]
        wrong = [key for key in wrong if not key.endswith(_BUFFERS)]
        require(
            not wrong,
            f"model={self.model} does not fit its config.json ({len(wrong)} weights such as {', '.join(wrong[:1])});"
            f" give a folder with the published {FILES}",
        )
        return model

    def _seen(self, kinds: Mapping[int, str], queries: _Queries) -> list[Segment]:
        """The objects of one picture, the most certain first."""
        chance, names = queries.classes.softmax(1)[:, list(kinds)], list(kinds.values())
        likely, kind = torch.where(chance > self.threshold)
        query, row = likely.unique(return_inverse=True)
        logits = queries.enlarged(query)
        score = chance[likely, kind] * _certainty(logits)[row]
        found = zip(score.tolist(), [names[k] for k in kind.tolist()], row.tolist(), strict=True)
        kept = _first(
            sorted((thing for thing in found if thing[0] > self.threshold), reverse=True), self.most
        )
        return [_segment(name, certain, (logits[r] > 0).cpu()) for certain, name, r in kept]


@record
class _Queries:
    """What a model says of one picture: the classes of each query, the last "none", and its mask, all as logits.

    `sizes` are the heights and widths in px of the picture as the model was shown it, and of the picture itself.
    """

    classes: Float[Tensor, "Q C"]
    masks: Float[Tensor, "Q h w"]
    sizes: tuple[tuple[int, int], tuple[int, int]]

    def enlarged(self, query: Tensor) -> Float[Tensor, "N H W"]:
        """The masks of some queries in px of the picture, by way of the picture that was shown."""
        shown, picture = self.sizes
        return interpolate(
            interpolate(self.masks[query, None], shown, mode="bilinear"), picture, mode="bilinear"
        )[:, 0]


def _queries(prepare: Any, model: Any, images: Float[Tensor, "B 3 H W"]) -> list[_Queries]:
    """What the model says of each image in [0, 1]."""
    shown = prepare(images=levels(images.to(model.device)), return_tensors="pt")["pixel_values"]
    said = model(pixel_values=shown.to(model.device, model.dtype))
    classes, masks = said.class_queries_logits.float(), said.masks_queries_logits.float()
    finite = bool(classes.isfinite().all() and masks.isfinite().all())
    require(
        finite,
        f"dtype={str(model.dtype).removeprefix('torch.')} is too narrow for this detector; choose float32",
    )
    sizes = (_size(shown), _size(images))
    return [_Queries(classes=c, masks=m, sizes=sizes) for c, m in zip(classes, masks, strict=True)]


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


def _certainty(logits: Float[Tensor, "N H W"]) -> Float[Tensor, " N"]:
    """The mean probability of a mask over the pixels that are more likely its own than not; 0 where there are none."""
    inside = logits > 0
    return (logits.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)


def _first(things: Sequence[tuple[float, str, int]], most: int) -> Iterator[tuple[float, str, int]]:
    """The first few of each name."""
    seen: Counter[str] = Counter()
    for thing in things:
        seen[thing[1]] += 1
        if seen[thing[1]] <= most:
            yield thing


def _segment(name: str, score: float, mask: Bool[Tensor, "H W"]) -> Segment:
    """The box of a mask that is not empty; its colour is yet to be told."""
    (y0, y1), (x0, x1) = (_span(mask.any(axis)) for axis in (1, 0))
    box = (float(x0), float(y0), float(x1), float(y1))
    return Segment(name=name, color="", box=box, score=score, mask=mask[y0:y1, x0:x1])


def _span(present: Bool[Tensor, " L"]) -> tuple[int, int]:
    """The first of those that are present, and one past the last."""
    places = present.nonzero()
    return int(places[0]), int(places[-1]) + 1


def _kinds(model: str, labels: Mapping[int, str]) -> dict[int, str]:
    """GenEval's names by the labels of a checkpoint; raises ConfigError unless it has all 80. Others are left out."""
    plain = {label: name.lower().replace("_", " ").strip() for label, name in labels.items()}
    named = {label: _CALLED.get(name, name) for label, name in plain.items()}
    missing = [name for name in NAMES if name not in named.values()]
    require(
        not missing,
        f"model={model} knows no {', '.join(missing[:3])} ({len(missing)} of COCO's 80 kinds are missing);"
        " give instance weights of COCO, such as facebook/mask2former-swin-small-coco-instance",
    )
    return {label: name for label, name in named.items() if name in NAMES}
