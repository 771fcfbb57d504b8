"""How often a vision-language model prefers an image to others of its prompt."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.remote.chat import VlmJudge, encode_data_urls
from grpo_guard.reward import Scorer, make_rewards
from grpo_guard.schema import component, require
from grpo_guard.types import Prompt, Rewards

_log = logging.getLogger(__name__)


@component
class VlmWinRate(VlmJudge):
    """Score an image by the share of comparisons with other images of its text that it wins.

    This follows Pref-GRPO (arXiv:2508.20751). The K images of a text stand in a ring, in the order
    of the batch, and each is compared with its neighbours. The model sees both orders of a pair, so
    a preference for the first image cancels out; this takes K * rivals questions. An answer nearer
    to `low` prefers the first image, one nearer to `high` the second, and one half way between is
    half a win for each. A pair counts if both orders have an answer. An image without a pair that
    counts has failed.

    An image that is alone with its text, as in an evaluation with one image per prompt, has no
    score. The mean over the images of a text is always 0.5, so judge a policy by another reward.
    """

    meanings: ClassVar[Mapping[str, str]] = {
        "{name}": "share of comparisons with other pictures of its prompt that the picture wins,"
        " by a vision-language model",
    }
    rivals: int | None
    """Number of other images that each image is compared with, half on either side in the ring: an
    even number. null compares it with all others."""
    compares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.rivals is None or (self.rivals > 0 and self.rivals % 2 == 0),
            f"rivals={self.rivals} is not 2, 4, 6, ...; give an even number, as half of them are on"
            " either side, or null for all",
        )

    def load(self, device: torch.device) -> Scorer:
        """Check the endpoints and return the scorer, which compares no broken images."""
        ask = self.open()

        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            pairs = []
            for ring in group_rows(images, prompts):
                pairs += choose_pairs(ring, self.rivals)
            if not pairs:
                _log.info(
                    "no win rate: each of these %d pictures is the only one of its prompt",
                    len(images),
                )
            rows = sorted({row for pair in pairs for row in pair})
            urls = dict(zip(rows, encode_data_urls(images[rows]), strict=True))
            orders = [order for i, j in pairs for order in ((i, j), (j, i))]
            answers = ask([self.make_question(prompts[i], urls[i], urls[j]) for i, j in orders])
            rates = win_rates(len(images), pairs, answers.view(-1, 2))
            return make_rewards(images, **{self.name: rates})

        return score


def group_rows(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the rows of each text, without images that are not finite."""
    groups: dict[str, list[int]] = {}
    for row in images.isfinite().flatten(1).all(1).nonzero().flatten().tolist():
        groups.setdefault(prompts[row].text, []).append(row)
    return list(groups.values())


def choose_pairs(ring: Sequence[int], rivals: int | None) -> list[tuple[int, int]]:
    """Pair each member of a ring with `rivals` others, half on either side, or with all others.

    No pair comes twice.
    """
    count = len(ring)
    reach = min(count if rivals is None else rivals, count) // 2
    places = {
        tuple(sorted((i, (i + step) % count))) for step in range(1, reach + 1) for i in range(count)
    }
    return [(ring[i], ring[j]) for i, j in sorted(places)]


def win_rates(
    count: int, pairs: Sequence[tuple[int, int]], answers: Float[Tensor, "P 2"]
) -> Float[Tensor, " B"]:
    """Return wins over comparisons for each of `count` images; NaN without a comparison.

    `answers` holds both orders of each pair, from 0 (the first image of the order is better) to 1
    (the second is); a pair with a NaN does not count.
    """
    counted = ~answers.isnan().any(1)
    # per order: 1 if its first image wins, 0 if its second does, 0.5 for a tie
    wins = (1 + (0.5 - answers[counted]).sign()) / 2
    # the second order shows the pair the other way round
    points = (wins[:, 0] + 1 - wins[:, 1]) / 2
    first, second = torch.tensor(pairs, dtype=torch.long).view(-1, 2)[counted].T
    won = torch.zeros(count).index_add(0, first, points).index_add(0, second, 1 - points)
    compared = torch.bincount(torch.cat([first, second]), minlength=count)
    return won / compared
