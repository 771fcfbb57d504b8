"""Images are rounded to 8 bits in one way for every scorer."""

import torch

from grpo_guard.pixels import to_8_bit


def test_levels_are_rounded_and_what_is_no_number_is_black():
    row = torch.tensor([0.0, 0.4 / 255, 1.6 / 255, 1.0, 1.2, -0.3, torch.nan])
    levels = to_8_bit(row.expand(1, 3, 1, 7))
    assert levels[0, 2, 0].tolist() == [0, 0, 2, 255, 255, 0, 0]


def test_half_precision_is_widened_before_it_is_multiplied():
    levels = torch.arange(256)
    images = (levels / 255).to(torch.bfloat16).expand(1, 3, 1, 256)
    assert torch.equal(to_8_bit(images), to_8_bit(images.float()))
