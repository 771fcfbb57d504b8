"""A detector of COCO's 80 kinds of objects with outlines: Mask2Former (arXiv:2112.01527).

GenEval was published with this detector. Scores, boxes and masks are computed as there: a score is
a query's probability of a kind times the certainty of its mask. Objects that overlap another one
are not dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

from grpo_guard.assets import locate
from grpo_guard.pixels import to_8_bit
from grpo_guard.reward._detection import Detect, Segment
from grpo_guard.reward._published import published_bytes
from grpo_guard.reward.clip import Precision
from grpo_guard.reward.clip_formats import check_complete, loading
from grpo_guard.schema import (
    Advice,
    AtMost,
    PositiveInt,
    Rule,
    Threshold,
    component,
    record,
    require,
)

FILES = "config.json, preprocessor_config.json and model.safetensors"
_KINDS = """
person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign
parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella
handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard
surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange
broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop
computer mouse,tv remote,computer keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book
clock,vase,scissors,teddy bear,hair drier,toothbrush
"""
COCO_NAMES = tuple(_KINDS.strip().replace("\n", ",").split(","))
"""COCO's 80 kinds, in its order, under the names that GenEval's prompts use."""
# Names in published checkpoints -> GenEval's names.
_SYNONYMS: Mapping[str, str] = {
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
# Buffers that some versions of transformers save and others compute.
_BUFFERS = ("relative_position_index", "empty_weight")


@component
class Mask2Former:
    """Detect objects of COCO's 80 kinds, with their outlines but without colours."""

    model: str
    """Folder or hub id with instance weights of COCO in the format of transformers."""
    side: Annotated[
        int | None,
        Rule(lambda x: x >= 32, "is too small", "give 32 px or more, or null"),
        AtMost(16_384),
    ]
    """Length in px, 32 or more, that the shorter side of an image is resized to.

    null resizes as the model's own image processor does.
    """
    threshold: Annotated[Threshold, Advice("the benchmark's is 0.3")]
    """Score in [0, 1) that an object must exceed; the benchmark uses 0.3."""
    most: Annotated[PositiveInt, Advice("the benchmark keeps 16 objects of a kind")]
    """Largest number of objects of one kind that are kept per image, the most certain ones."""
    microbatch: PositiveInt
    """Number of images that are processed at a time; lower it to save memory."""
    dtype: Precision
    """Dtype that the model computes in; scores and masks are computed in float32."""

    def knows(self, name: str) -> bool:
        """Return whether this is one of the 80 kinds."""
        return name in COCO_NAMES

    @property
    def weight_bytes(self) -> int:
        """Bytes of the model's weights in its dtype."""
        return published_bytes(self.model, self.dtype)

    def load(self, device: torch.device) -> Detect:
        """Load the model and return the detector.

        Raises ConfigError if the weights are missing or were trained on other kinds of objects.
        """
        processor = self._load_processor()
        model = self._load_model()
        kinds = match_kinds(self.model, model.config.id2label)
        model.requires_grad_(False).to(device, getattr(torch, self.dtype))

        @torch.no_grad()
        def detect(images: Float[Tensor, "B 3 H W"]) -> list[list[Segment]]:
            detections = []
            for chunk in images.split(self.microbatch):
                for queries in _run_model(processor, model, chunk):
                    detections.append(self._select_objects(kinds, queries))
            return detections

        return detect

    def _load_processor(self) -> Any:
        from transformers import Mask2FormerImageProcessor

        # some checkpoints pad images to one size, which would shift the boxes
        options: dict[str, Any] = {"pad_size": None}
        if self.side:
            # the benchmark's 800 and 1333 px, at any scale
            options["size"] = {"shortest_edge": self.side, "longest_edge": self.side * 5 // 3}
        with loading("model", self.model, FILES):
            return Mask2FormerImageProcessor.from_pretrained(locate("model", self.model), **options)

    def _load_model(self) -> Any:
        from transformers import Mask2FormerForUniversalSegmentation

        source = locate("model", self.model)
        with loading("model", self.model, FILES):
            loaded: Any = Mask2FormerForUniversalSegmentation.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True
            )
        model, report = loaded
        check_complete(self.model, report, FILES, ignored=_BUFFERS)
        return model

    def _select_objects(self, kinds: Mapping[int, str], queries: _Queries) -> list[Segment]:
        """Return the objects of one image, the most certain first."""
        names = list(kinds.values())
        probability = queries.classes.softmax(1)[:, list(kinds)]
        # a score is at most the probability: only these queries need their masks enlarged
        query_of_candidate, kind = torch.where(probability > self.threshold)
        query, mask_row = query_of_candidate.unique(return_inverse=True)
        logits = queries.enlarge_masks(query)
        score = probability[query_of_candidate, kind] * _mask_certainty(logits)[mask_row]
        candidates = zip(
            score.tolist(), [names[k] for k in kind.tolist()], mask_row.tolist(), strict=True
        )
        ranked = sorted((c for c in candidates if c[0] > self.threshold), reverse=True)
        return [
            _make_segment(name, certainty, (logits[row] > 0).cpu())
            for certainty, name, row in _keep_first(ranked, self.most)
        ]


@record
class _Queries:
    """The model's output for one image."""

    classes: Float[Tensor, "Q C"]
    """Logits of each query's classes; the last class is "no object"."""
    masks: Float[Tensor, "Q h w"]
    """Logits of each query's mask, at the model's own resolution."""
    input_size: tuple[int, int]
    """Height and width in px of the image that the model saw."""
    image_size: tuple[int, int]
    """Height and width in px of the original image."""

    def enlarge_masks(self, query: Tensor) -> Float[Tensor, "N H W"]:
        """Resize the masks of some queries to the image, by way of the model's input."""
        masks = interpolate(self.masks[query, None], self.input_size, mode="bilinear")
        return interpolate(masks, self.image_size, mode="bilinear")[:, 0]


def _run_model(processor: Any, model: Any, images: Float[Tensor, "B 3 H W"]) -> list[_Queries]:
    """Return the model's output for each image in [0, 1]."""
    # On the CPU: on a GPU the resizing rounds to other pixels, and the reward would depend on it.
    pixels = processor(images=to_8_bit(images.cpu()), return_tensors="pt")["pixel_values"]
    output = model(pixel_values=pixels.to(model.device, model.dtype))
    classes = output.class_queries_logits.float()
    masks = output.masks_queries_logits.float()
    require(
        bool(classes.isfinite().all() and masks.isfinite().all()),
        f"dtype={str(model.dtype).removeprefix('torch.')} is too narrow for this detector;"
        " choose float32",
    )
    return [
        _Queries(classes=c, masks=m, input_size=_size(pixels), image_size=_size(images))
        for c, m in zip(classes, masks, strict=True)
    ]


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


def _mask_certainty(logits: Float[Tensor, "N H W"]) -> Float[Tensor, " N"]:
    """Return a mask's mean probability over its pixels (those above 0.5); 0 for an empty mask."""
    inside = logits > 0
    return (logits.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)


def _keep_first(
    candidates: Sequence[tuple[float, str, int]], most: int
) -> list[tuple[float, str, int]]:
    """Keep the first candidates of each name, at most `most`."""
    counts: Counter[str] = Counter()
    kept = []
    for candidate in candidates:
        name = candidate[1]
        counts[name] += 1
        if counts[name] <= most:
            kept.append(candidate)
    return kept


def _make_segment(name: str, score: float, mask: Bool[Tensor, "H W"]) -> Segment:
    """Return an object without a colour; its mask must not be empty."""
    y0, y1 = _find_extent(mask.any(1))
    x0, x1 = _find_extent(mask.any(0))
    box = (float(x0), float(y0), float(x1), float(y1))
    return Segment(name=name, color="", box=box, score=score, mask=mask[y0:y1, x0:x1])


def _find_extent(present: Bool[Tensor, " L"]) -> tuple[int, int]:
    """Return the index of the first True, and one past the last."""
    places = present.nonzero()
    return int(places[0]), int(places[-1]) + 1


def match_kinds(model: str, labels: Mapping[int, str]) -> dict[int, str]:
    """Return GenEval's name for each label of a checkpoint, leaving out kinds that COCO has not.

    Raises ConfigError unless all 80 kinds are there.
    """
    plain = {label: name.lower().replace("_", " ").strip() for label, name in labels.items()}
    named = {label: _SYNONYMS.get(name, name) for label, name in plain.items()}
    missing = [name for name in COCO_NAMES if name not in named.values()]
    require(
        not missing,
        f"model={model} knows no {', '.join(missing[:3])}"
        f" ({len(missing)} of COCO's 80 kinds are missing);"
        " give instance weights of COCO, such as facebook/mask2former-swin-small-coco-instance",
    )
    return {label: name for label, name in named.items() if name in COCO_NAMES}
