"""Plain statistics of images, which show early how a policy drifts: wiped backgrounds, grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.reward import Scorer, make_rewards
from grpo_guard.schema import AtMost, Rule, component
from grpo_guard.types import Prompt, Rewards
from grpo_guard.world.statistics import picture_statistics


@component
class ImageStatistics:
    """Measure images; every part is in [0, 1]. The numbers are to look at, not to train on.

    `meanings` says what the parts are. None of them says whether an image is good.
    """

    meanings: ClassVar[Mapping[str, str]] = {
        "dark_fraction": "share of the pixels that are nearly black",
        "edge_density": "share of neighbouring pixels whose brightness differs clearly",
        "color_entropy": "how many colours there are and how evenly; 1 if all are equally frequent",
        "saturation": "how colourful the pixels are on average; 0 is grey",
        "grid_energy": "share of the picture's detail that repeats every {period} px, like patches",
    }
    period: Annotated[
        int,
        Rule(lambda x: x > 1, "is no grid", "give 2 px, or the size of a patch in px"),
        AtMost(16_384),
    ]
    """Period in px of the grid that `grid_energy` looks for, 2 or more.

    Give the size of a latent patch in px: 8 with sd3_tiny, 16 with SD3 and FLUX.
    """

    compares: ClassVar[bool] = False

    def accepts(self, prompt: Prompt) -> bool:
        """Accept every prompt: the statistics do not depend on it."""
        return True

    weight_bytes: ClassVar[int] = 0
    """Always 0: there are no weights."""

    def load(self, device: torch.device) -> Scorer:
        """Return the scorer; it has no weights and computes on the device of the images."""

        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            return make_rewards(images, **picture_statistics(images, period=self.period))

        return score
