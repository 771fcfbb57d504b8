"""Rendered pictures to train on, and sheets of them to look at."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from grpo_guard.types import Prompt
from grpo_guard.world import captions, render

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CHUNK = 2048


def draw(seed: int, count: int, *, heldout: bool = False) -> tuple[list[Prompt], np.ndarray]:
    """`count` prompts and an image of each (uint8, count x 64 x 64 x 3)."""
    rng = np.random.default_rng(seed)
    prompts = captions.draw(rng, count, captions.prompts(heldout=heldout))
    return prompts, render.render(prompts, rng)


def pixels(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) -> float (N, 3, H, W) in [-1, 1] on the device, channels last."""
    x = torch.from_numpy(images).to(DEVICE).permute(0, 3, 1, 2)
    return (x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


class Pool:
    """A growing set of rendered images and their prompts, drawn in chunks that are the same in every run."""

    def __init__(self, size: int, seed: int) -> None:
        chunks = [
            draw(seed * 10_000 + i, CHUNK)
            for i in track(range(math.ceil(size / CHUNK)), "rendering")
        ]
        self.prompts = [p for prompts, _ in chunks for p in prompts][:size]
        self.images = np.concatenate([images for _, images in chunks])[:size]

    def rows(self, step: int, batch: int) -> np.ndarray:
        """The rows of a training step: sampled by the step's own address, so that resuming changes nothing."""
        return np.random.default_rng([7, step]).integers(0, len(self.prompts), batch)


def sheet(file: Path, x: Tensor, columns: int = 16) -> None:
    """Write images (N, 3, H, W) in [-1, 1] as a grid, enlarged twice."""
    array = ((x.clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).cpu().numpy()
    rows = [
        np.concatenate(list(array[i : i + columns]), 1)
        for i in range(0, len(array) // columns * columns, columns)
    ]
    image = Image.fromarray(np.concatenate(rows))
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(file)
