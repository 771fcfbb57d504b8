"""The table of `bench.py detector`: does GenEval's detector see the same on a GPU as on the CPU?

Its weights are random ones. Those of its classes are enlarged, so that it is certain of objects.
What it sees has no meaning, but it depends on every layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor
from transformers import Mask2FormerImageProcessor

from grpo_guard.command.benches.rewards import PHOTO_SIDE, draw_pictures
from grpo_guard.command.benches.standins import write_detector
from grpo_guard.console import reading
from grpo_guard.pixels import to_8_bit
from grpo_guard.reward.geneval import GenEval
from grpo_guard.schema import record
from grpo_guard.strategy.single import Single
from grpo_guard.world.detection import Detection

CPU = torch.device("cpu")
CERTAINTY = 100.0
"""Factor on the weights of the classes."""
SETTINGS = "detector.most=100"
"""Setting with which all of the detector's 100 queries may be objects of one kind."""
Objects = Sequence[Sequence[Detection]]
"""What was seen in each picture."""


@record
class Difference:
    """How what was seen on a device differs from what was seen on the CPU."""

    objects: int
    """Objects seen on the CPU."""
    pictures: int
    """Pictures in which the device saw other kinds of objects, or another number of a kind."""
    score: float
    """Largest difference of a score, in the other pictures."""
    edge: float
    """Largest difference of an edge of a box in px, in the other pictures."""


def compare_devices(images: int) -> Table:
    """Detect objects in pictures on the CPU, and on the device of a run with strategy=single."""
    device = Single(device="auto", threads=None).start().device
    with TemporaryDirectory() as folder:
        settings = write_detector(Path(folder), CERTAINTY)
        reward = cast(GenEval, reading.build_reward(f"geneval_coco {settings} {SETTINGS}"))
        _, pictures = draw_pictures(reward, images, PHOTO_SIDE)
        on_cpu = reward.detector.load(CPU)(pictures)
        there = reward.detector.load(device)(pictures.to(device))
    difference = compare_objects(on_cpu, there)
    resized = share_resized_otherwise(pictures, device)
    table = Table(f"{device} against the CPU", f"{len(pictures)} pictures")
    table.add_row("objects seen on the CPU", str(difference.objects))
    table.add_row("pictures with other objects", str(difference.pictures))
    table.add_row("largest difference of a score", f"{difference.score:.2g}")
    table.add_row("largest difference of a box, px", f"{difference.edge:.0f}")
    table.add_row("numbers of a picture that resizing on the device changes", f"{resized:.2%}")
    return table


def compare_objects(on_cpu: Objects, there: Objects) -> Difference:
    """Compare what was seen in the same pictures.

    An object's partner is the one of its kind whose box is nearest, and of several the one whose
    score is nearest: objects with almost equal scores may change their order.
    """
    pairs = [
        (own, other)
        for own, other in zip(on_cpu, there, strict=True)
        if count_kinds(own) == count_kinds(other)
    ]
    score = edge = 0.0
    for own, other in pairs:
        for seen in own:
            distances = [
                (edge_distance(seen, partner), abs(seen.score - partner.score))
                for partner in other
                if partner.name == seen.name
            ]
            nearest = min(distances)
            edge, score = max(edge, nearest[0]), max(score, nearest[1])
    return Difference(
        objects=sum(map(len, on_cpu)), pictures=len(on_cpu) - len(pairs), score=score, edge=edge
    )


def count_kinds(objects: Sequence[Detection]) -> Counter[str]:
    """Count the objects of each kind."""
    return Counter(seen.name for seen in objects)


def edge_distance(first: Detection, second: Detection) -> float:
    """Return the largest distance in px between the same edges of two boxes."""
    return max(abs(a - b) for a, b in zip(first.box, second.box, strict=True))


def share_resized_otherwise(pictures: Float[Tensor, "B 3 H W"], device: torch.device) -> float:
    """Return the share of a resized picture's numbers that a device computes otherwise.

    The reward resizes on the CPU, because a GPU rounds to other pixels.
    """
    processor = Mask2FormerImageProcessor()
    resize = [
        processor(images=to_8_bit(pictures.to(where)), return_tensors="pt")["pixel_values"].cpu()
        for where in (CPU, device)
    ]
    return (resize[0] != resize[1]).float().mean().item()
