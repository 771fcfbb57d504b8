"""Rendered pictures to train on, and sheets of pictures to look at."""

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
POOL_CHUNK = 2048
"""Pictures that are rendered at a time; another number would give other pictures."""


def render_captions(
    seed: int, count: int, *, heldout: bool = False
) -> tuple[list[Prompt], np.ndarray]:
    """Draw `count` captions and render a picture of each (uint8, count x 64 x 64 x 3)."""
    rng = np.random.default_rng(seed)
    prompts = captions.draw_captions(rng, count, captions.all_prompts(heldout=heldout))
    return prompts, render.render(prompts, rng)


def to_pixels(images: np.ndarray) -> Tensor:
    """Convert uint8 (N, H, W, 3) to floats (N, 3, H, W) in [-1, 1] on the device, channels last."""
    x = torch.from_numpy(images).to(DEVICE).permute(0, 3, 1, 2)
    return (x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


class Pool:
    """Rendered pictures and their prompts.

    They are the same in every run, and a larger pool begins with the pictures of a smaller one.
    """

    def __init__(self, size: int, seed: int) -> None:
        chunks = [
            render_captions(seed * 10_000 + i, POOL_CHUNK)
            for i in track(range(math.ceil(size / POOL_CHUNK)), "rendering")
        ]
        self.prompts = [prompt for prompts, _ in chunks for prompt in prompts][:size]
        self.images = np.concatenate([images for _, images in chunks])[:size]

    def rows(self, step: int, batch: int) -> np.ndarray:
        """Draw the rows of a training step; they depend on the step alone, so resuming is exact."""
        return np.random.default_rng([7, step]).integers(0, len(self.prompts), batch)


def save_sheet(file: Path, x: Tensor, columns: int = 16) -> None:
    """Write pictures (N, 3, H, W) in [-1, 1] as a grid, enlarged twice; drops an incomplete row."""
    array = ((x.clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).cpu().numpy()
    rows = [
        np.concatenate(list(array[i : i + columns]), 1)
        for i in range(0, len(array) // columns * columns, columns)
    ]
    image = Image.fromarray(np.concatenate(rows))
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(file)
