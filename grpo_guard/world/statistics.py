"""Plain measures of pictures of any content, to see how they drift during training."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def picture_statistics(
    images: Float[Tensor, "B 3 H W"], *, period: int = 2
) -> dict[str, Float[Tensor, " B"]]:
    """Measure pictures in [0, 1] of any size; every measure is in [0, 1].

    `grid_energy` is the share of spectral energy on a grid of `period` px. Use 2 for single pixels,
    or the patch size in px to see the patches of a transformer.
    """
    images = images.float()
    luminance = images.mean(1)
    across, down = luminance.diff(dim=2).abs(), luminance.diff(dim=1).abs()
    edges = (across > 0.1).float().mean((1, 2)) + (down > 0.1).float().mean((1, 2))
    return {
        "dark_fraction": (luminance < 0.2).float().mean((1, 2)),
        "edge_density": edges / 2,
        "color_entropy": _color_entropy(images),
        "saturation": (images.amax(1) - images.amin(1)).mean((1, 2)),
        "grid_energy": _grid_energy(luminance, period),
    }


def _color_entropy(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the entropy of a histogram of 4 x 4 x 4 colours; 1 if all are equally frequent."""
    level = (images * 4).long().clamp(0, 3).flatten(2)
    bins = level[:, 0] * 16 + level[:, 1] * 4 + level[:, 2]
    # Each picture gets 64 bins of its own, so that one bincount serves the whole batch.
    offset = 64 * torch.arange(len(bins), device=bins.device)[:, None]
    counts = torch.bincount((bins + offset).flatten(), minlength=64 * len(bins)).reshape(-1, 64)
    entropy: Tensor = torch.special.entr(counts / bins.shape[1]).sum(1)
    return entropy / math.log(64)


def _grid_energy(luminance: Float[Tensor, "B H W"], period: int) -> Float[Tensor, " B"]:
    """Return the share of spectral energy at the harmonics of 1 / period on either axis."""
    energy = torch.fft.fft2(luminance - luminance.mean((1, 2), keepdim=True)).abs().square()
    places = [torch.arange(extent, device=energy.device) for extent in luminance.shape[1:]]
    rows, columns = (at * period % len(at) == 0 for at in places)
    rows[0] = columns[0] = False
    on_grid = (energy * (rows[:, None] | columns)).sum((1, 2))
    share: Tensor = on_grid / energy.sum((1, 2)).clamp_min(1e-12)
    return share
