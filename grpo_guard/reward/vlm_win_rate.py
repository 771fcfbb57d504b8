"""How often a picture is preferred to others of its prompt, by a vision-language model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.remote.chat import Judge, data_urls
from grpo_guard.reward import Scorer, scored
from grpo_guard.types import Prompt, Rewards, component, require

_log = logging.getLogger(__name__)


@component
class VlmWinRate(Judge):
    """The share of its comparisons, with pictures of its text that are scored with it, that a picture wins.

    After Pref-GRPO (arXiv:2508.20751). The K pictures of a text stand in a ring, in the order in which they come, and
    each meets the `rivals` next to it, half of them on either side (null: all others). Both orders of a pair are asked
    about, so that a liking for first pictures cancels out: K * rivals questions. An answer nearer to `low` is for the
    first picture, nearer to `high` for the second; half way between is half a win for each. A pair counts once both
    orders have an answer, and a picture of which no pair counts has failed: NaN.

    So there is no score for a picture alone of its text, as in an evaluation with one of each. The mean over a text is
    0.5 whatever the policy: judge that by another reward.
    """

    rivals: int | None
    compares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        even = self.rivals is None or (self.rivals > 0 and self.rivals % 2 == 0)
        require(
            even,
            f"rivals={self.rivals} is not 2, 4, 6, ...; half of them are on either side, or null for all",
        )

    def load(self, device: torch.device) -> Scorer:
        """The scorer; a picture that is not finite meets no other."""
        ask = self.open()

        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            pairs = [
                pair for ring in rings(images, prompts) for pair in meetings(ring, self.rivals)
            ]
            if not pairs:
                _log.info(
                    "none of %d pictures has another of its prompt beside it: no win rate",
                    len(images),
                )
            rows = sorted({row for pair in pairs for row in pair})
            urls = dict(zip(rows, data_urls(images[rows]), strict=True))
            orders = [order for i, j in pairs for order in ((i, j), (j, i))]
            found = ask([self.about(prompts[i], urls[i], urls[j]) for i, j in orders])
            return scored(images, **{self.name: win_rates(len(images), pairs, found.view(-1, 2))})

        return score


def rings(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> list[list[int]]:
    """The rows of each text, without images that are not finite."""
    found: dict[str, list[int]] = {}
    for row in images.isfinite().flatten(1).all(1).nonzero().flatten().tolist():
        found.setdefault(prompts[row].text, []).append(row)
    return list(found.values())


def meetings(ring: Sequence[int], rivals: int | None) -> list[tuple[int, int]]:
    """The pairs of a ring in which each meets half of its `rivals` on either side, or all others; none comes twice."""
    count = len(ring)
    reach = min(count if rivals is None else rivals, count) // 2
    near = {
        tuple(sorted((i, (i + step) % count))) for step in range(1, reach + 1) for i in range(count)
    }
    return [(ring[i], ring[j]) for i, j in sorted(near)]


def win_rates(
    count: int, pairs: Sequence[tuple[int, int]], found: Float[Tensor, "P 2"]
) -> Float[Tensor, " B"]:
    """Wins over comparisons of each of `count` pictures, or NaN where it has none.

    `found` are the answers for both orders of a pair, each from 0 (the first fits better) to 1 (the second does).
    """
    counted = ~found.isnan().any(1)
    chosen = (1 + (0.5 - found[counted]).sign()) / 2
    points = (chosen[:, 0] + 1 - chosen[:, 1]) / 2
    one, other = torch.tensor(pairs, dtype=torch.long).view(-1, 2)[counted].T
    won = torch.zeros(count).index_add(0, one, points).index_add(0, other, 1 - points)
    met = torch.bincount(torch.cat([one, other]), minlength=count)
    return won / met
