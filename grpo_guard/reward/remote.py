"""A reward that is scored by servers, which `scripts/serve_reward.py` starts."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.remote.client import (
    ReplicaClient,
    Replicas,
    UselessAnswer,
    connect,
    finish,
    number_requests,
)
from grpo_guard.remote.tokens import read_token
from grpo_guard.remote.wire import Offer, pack_request, unpack_offer, unpack_rewards
from grpo_guard.reward import Reward, Scorer, concatenate_notes
from grpo_guard.schema import Advice, PositiveInt, component, require
from grpo_guard.types import Prompt, Rewards


@component
class Remote(Replicas):
    """Score images with servers of one reward.

    An image that no server has scored after the last round has failed: its score is NaN and it
    counts towards `reward/failed`. A score is never made up.
    """

    served: Reward
    """The reward that the servers have. It is never loaded here: it only says which prompts it
    accepts, which must be known before there is any connection."""
    batch: Annotated[PositiveInt, Advice("give the images of a request")]
    """Number of images per request."""

    @property
    def compares(self) -> bool:
        """Whether the served reward compares images."""
        return self.served.compares

    def accepts(self, prompt: Prompt) -> bool:
        """Accept prompts that the served reward accepts."""
        return self.served.accepts(prompt)

    weight_bytes: ClassVar[int] = 0
    """Always 0: the weights of the served reward are on its servers."""

    def load(self, device: torch.device) -> Scorer:
        """Ask every server what it serves, and return the scorer.

        Raises ConfigError if a server does not answer or serves another reward than the others.
        """
        offer = self._ask_offers()
        open_client = functools.partial(connect, self, read_token(self.token))
        numbers = number_requests()

        async def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            chunks = split_prompts(prompts, self.batch, self.compares)
            async with open_client() as client:
                requests = [
                    _score_chunk(client, next(numbers), images[rows], prompts[rows], offer)
                    for rows in chunks
                ]
                rewards = join_rewards(await asyncio.gather(*requests), images.device)
                failures = int(rewards.failed.sum())
                client.log_errors(
                    f"{failures} of {len(rewards.failed)} images have no remote score"
                )
            return rewards

        return lambda images, prompts: finish(score(images, prompts))

    def check_servers(self) -> None:
        """Raise ConfigError unless every server answers, and all serve the same reward."""
        self._ask_offers()

    def _ask_offers(self) -> Offer:
        async def fetch_offers() -> list[Offer]:
            async with connect(self, read_token(self.token)) as client:
                return await asyncio.gather(*(_fetch_offer(client, url) for url in self.urls))

        return check_offers(finish(fetch_offers()))


def split_prompts(prompts: Sequence[Prompt], batch: int, whole: bool) -> list[slice]:
    """Divide prompts into chunks of neighbours, at most `batch` in each.

    With `whole`, neighbours of the same text stay together, even if they are more than `batch`.
    """
    starts = [
        i
        for i in range(len(prompts))
        if not whole or i == 0 or prompts[i].text != prompts[i - 1].text
    ]
    chunks: list[slice] = []
    for start, end in pairwise([*starts, len(prompts)]):
        if chunks and end - chunks[-1].start <= batch:
            chunks[-1] = slice(chunks[-1].start, end)
        else:
            chunks.append(slice(start, end))
    return chunks


def check_offers(offers: Sequence[Offer]) -> Offer:
    """Return what all replicas serve, with the smallest of their limits.

    Raises ConfigError if they serve different rewards.
    """
    kinds = sorted({f"{offer.reward} {dict(offer.weights)} {offer.parts}" for offer in offers})
    require(
        len(kinds) == 1,
        f"urls serve different rewards ({', '.join(kinds)}); give replicas of one reward",
    )
    return min(offers, key=lambda offer: offer.limit)


def make_failures(count: int, offer: Offer) -> Rewards:
    """Return the rewards of images that no server has scored."""
    none = torch.full((count,), math.nan)
    parts = dict.fromkeys(offer.parts, none)
    return Rewards(total=none, parts=parts, weights=offer.weights, failed=none.isnan())


def join_rewards(chunks: Sequence[Rewards], device: torch.device) -> Rewards:
    """Join the rewards of consecutive chunks, on a device."""
    return Rewards(
        total=torch.cat([chunk.total for chunk in chunks]).to(device),
        parts={
            name: torch.cat([chunk.parts[name] for chunk in chunks]).to(device)
            for name in chunks[0].parts
        },
        weights=chunks[0].weights,
        failed=torch.cat([chunk.failed for chunk in chunks]).to(device),
        notes=concatenate_notes(chunks),
    )


async def _fetch_offer(client: ReplicaClient, url: str) -> Offer:
    return await client.fetch_description(
        url,
        "/health",
        unpack_offer,
        kind="a server of rewards",
        start="start scripts/serve_reward.py there",
    )


async def _score_chunk(
    client: ReplicaClient,
    index: int,
    images: Float[Tensor, "B 3 H W"],
    prompts: Sequence[Prompt],
    offer: Offer,
) -> Rewards:
    """Return the scores of one request by any server, or failures if no server gives them."""

    async def ask(url: str) -> Rewards:
        body = pack_request(images, prompts)
        if len(body) > offer.limit:
            raise UselessAnswer(
                f"{len(body)} bytes are over the limit={offer.limit} of {url}; lower batch"
            )
        return unpack_rewards(await client.fetch("POST", f"{url}/score", body), len(images), offer)

    rewards = await client.ask_replicas(index, ask)
    return make_failures(len(images), offer) if rewards is None else rewards
