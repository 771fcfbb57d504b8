"""A reward that is scored elsewhere: by servers that `scripts/serve_reward.py` starts."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.remote.client import Calls, Replicas, Trouble, connected
from grpo_guard.remote.wire import Offer, pack_request, secret, unpack_offer, unpack_rewards
from grpo_guard.reward import Reward, Scorer, noted
from grpo_guard.types import Prompt, Rewards, component, require


@component
class Remote(Replicas):
    """Sends `batch` images at a time to servers of one reward, and never makes up a score.

    Images that no server has scored after the last round have failed: NaN, and counted. `served` is the reward that
    they have, of which nothing is loaded here: it says what prompts are accepted, as that must be known before, and
    without, any network.
    """

    served: Reward
    batch: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch > 0, f"batch={self.batch} is not positive")

    @property
    def compares(self) -> bool:
        """As the served reward does."""
        return self.served.compares

    def accepts(self, prompt: Prompt) -> bool:
        """Prompts that the served reward accepts."""
        return self.served.accepts(prompt)

    def load(self, device: torch.device) -> Scorer:
        """The scorer, once every server has told what it serves; raises ConfigError where one does not."""
        connect = functools.partial(connected, self, secret(self.token))

        async def ask() -> Offer:
            async with connect() as calls:
                return agreed(await asyncio.gather(*(_offer(calls, url) for url in self.urls)))

        async def scored(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            divided = chunks(prompts, self.batch, self.compares)
            async with connect() as calls:
                asked = (
                    _scores(calls, i, images[rows], prompts[rows], offer)
                    for i, rows in enumerate(divided)
                )
                found = joined(await asyncio.gather(*asked), images.device)
                calls.report(
                    f"{int(found.failed.sum())} of {len(found.failed)} images have no remote score"
                )
            return found

        offer = asyncio.run(ask())
        return lambda images, prompts: asyncio.run(scored(images, prompts))


def chunks(prompts: Sequence[Prompt], batch: int, whole: bool) -> list[slice]:
    """Up to `batch` neighbours each; where `whole`, those of one text stay together, however many they are."""
    starts = [
        i
        for i in range(len(prompts))
        if not whole or i == 0 or prompts[i].text != prompts[i - 1].text
    ]
    found: list[slice] = []
    for start, end in pairwise([*starts, len(prompts)]):
        fits = found and end - found[-1].start <= batch
        start = found.pop().start if fits else start
        found.append(slice(start, end))
    return found


async def _offer(calls: Calls, url: str) -> Offer:
    """What a server serves; raises ConfigError where it does not say so."""
    start = "start scripts/serve_reward.py there"
    return await calls.told(url, "/health", unpack_offer, kind="a server of rewards", start=start)


async def _scores(
    calls: Calls,
    index: int,
    images: Float[Tensor, "B 3 H W"],
    prompts: Sequence[Prompt],
    offer: Offer,
) -> Rewards:
    """Scores of one request, by whichever server gives them; failures where none does."""

    async def ask(url: str) -> Rewards:
        body = pack_request(images, prompts)
        if len(body) > offer.limit:
            raise Trouble(
                f"{len(body)} bytes are over the limit={offer.limit} of {url}; lower batch"
            )
        return unpack_rewards(await calls.fetch("POST", f"{url}/score", body), len(images), offer)

    found = await calls.spread(index, ask)
    return failures(len(images), offer) if found is None else found


def agreed(offers: Sequence[Offer]) -> Offer:
    """What all replicas serve, with the least of their limits; raises ConfigError where they differ."""
    kinds = sorted({f"{offer.reward} {dict(offer.weights)} {offer.parts}" for offer in offers})
    require(
        len(kinds) == 1, f"urls serve different rewards ({', '.join(kinds)}); give replicas of one"
    )
    return min(offers, key=lambda offer: offer.limit)


def failures(count: int, offer: Offer) -> Rewards:
    """What is known of images that nobody has scored."""
    none = torch.full((count,), math.nan)
    parts = dict.fromkeys(offer.parts, none)
    return Rewards(total=none, parts=parts, weights=offer.weights, failed=none.isnan())


def joined(rewards: Sequence[Rewards], device: torch.device) -> Rewards:
    """The scores of chunks, in their order."""
    return Rewards(
        total=torch.cat([found.total for found in rewards]).to(device),
        parts={
            name: torch.cat([found.parts[name] for found in rewards]).to(device)
            for name in rewards[0].parts
        },
        weights=rewards[0].weights,
        failed=torch.cat([found.failed for found in rewards]).to(device),
        notes=noted(rewards),
    )
