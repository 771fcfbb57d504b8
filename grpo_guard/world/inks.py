"""The colours that pictures are made of, and how much of each is in a pixel."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grpo_guard.world.scene import BACKGROUND, PALETTE, WORD_COLOR

INKS = torch.cat([torch.from_numpy(PALETTE), torch.tensor([WORD_COLOR])])
"""RGB of every colour that a thing can have, shape (C, 3); black is the last."""
PAPER_GREY = sum(BACKGROUND) / 2
"""The grey that the background is taken to have."""
CHUNK = 64
"""Pictures per pass: small enough that the working set stays in the CPU's cache."""
_REACH = 0.30
"""Maximum RGB distance of a pixel from the nearest mixture of paper and an ink."""


def separate_inks(
    images: Float[Tensor, "B 3 H W"],
) -> tuple[Float[Tensor, "B C H W"], Bool[Tensor, "B C H W"]]:
    """Explain every pixel as a mixture of paper and one ink.

    Returns the share of each ink in [0, 1], and whether that ink fits best and is more than half
    of the pixel.
    """
    inks = INKS - PAPER_GREY
    pixels = images - PAPER_GREY
    lengths = inks.square().sum(1)[:, None, None]
    amounts = project(pixels, inks) / lengths
    error = pixels.square().sum(1, keepdim=True) - amounts.square() * lengths
    near = error <= error.amin(1, keepdim=True).clamp_max(_REACH**2)
    return amounts.clamp_(0, 1), near & (amounts > 0.5)


def project(
    pixels: Float[Tensor, "B 3 H W"], colors: Float[Tensor, "C 3"]
) -> Float[Tensor, "B C H W"]:
    """Return the inner product of every pixel with every colour."""
    products: Tensor = colors @ pixels.flatten(2)
    return products.reshape(*products.shape[:2], *pixels.shape[2:])
