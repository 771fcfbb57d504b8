"""Images as pixels of 8 bits."""

from __future__ import annotations

from jaxtyping import Float, UInt8
from torch import Tensor


def to_8_bit(images: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Round images in [0, 1] to 8 bits, which is what every published scorer saw; NaN is black."""
    return images.float().nan_to_num().clamp(0, 1).mul(255).round().byte()
