"""A reward that is scored elsewhere: by servers that `scripts/serve_reward.py` starts."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import httpx2
import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.reward import Reward, Scorer
from grpo_guard.types import ConfigError, Prompt, Rewards, component, require
from grpo_guard.wire import Offer, WireError, pack_request, secret, unpack_offer, unpack_rewards

T = TypeVar("T")
REPLY = 2**24
"""The most bytes of a reply; what is longer is none."""
_log = logging.getLogger(__name__)


class Trouble(Exception):
    """An attempt that gave no scores: one line that names the server."""


class Refusal(Trouble):
    """An attempt that the server refused by a status of 400 to 499."""


@component
class Remote:
    """Sends `batch` images at a time to servers of one reward, and never makes up a score.

    A request that fails, or takes more than `timeout` seconds, goes to the next of `urls`; after a round over all of
    them it waits for `backoff` seconds, which double with each of `retries` further rounds. Images that no server has
    scored by then have failed: NaN, and counted. `token` names the environment variable that holds the servers' token.
    `served` is the reward that they have, of which nothing is loaded here: it says what prompts are accepted, as that
    must be known before, and without, any network.
    """

    urls: Sequence[str]
    served: Reward
    token: str | None
    batch: int
    connections: int
    timeout: float
    retries: int
    backoff: float

    def __post_init__(self) -> None:
        require(bool(self.urls) and not isinstance(self.urls, str), f"urls={self.urls} is no list; give at least one")
        for url in self.urls:
            require(_is_url(url), f"urls={url} is no address; give one like http://127.0.0.1:8000")
        for key in ("batch", "connections", "timeout"):
            require(getattr(self, key) > 0, f"{key}={getattr(self, key)} is not positive")
        for key in ("retries", "backoff"):
            require(getattr(self, key) >= 0, f"{key}={getattr(self, key)} is negative; 0 does without")

    def accepts(self, prompt: Prompt) -> bool:
        """Prompts that the served reward accepts."""
        return self.served.accepts(prompt)

    def load(self, device: torch.device) -> Scorer:
        """The scorer, once every server has told what it serves; raises ConfigError where one does not."""
        connect = functools.partial(_connected, self, secret(self.token))

        async def ask() -> Offer:
            async with connect() as call:
                return agreed(await asyncio.gather(*(call.offer(url) for url in self.urls)))

        async def scored(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            chunks = [slice(start, start + self.batch) for start in range(0, len(images), self.batch)]
            async with connect() as call:
                asked = (call.scores(i, images[rows], prompts[rows], offer) for i, rows in enumerate(chunks))
                found = joined(await asyncio.gather(*asked), images.device)
                call.report(found)
            return found

        offer = asyncio.run(ask())
        return lambda images, prompts: asyncio.run(scored(images, prompts))


class _Call:
    """The requests of one call, and what went wrong with them."""

    def __init__(self, remote: Remote, client: httpx2.AsyncClient) -> None:
        self.remote, self.client, self.urls = remote, client, [url.rstrip("/") for url in remote.urls]
        self.room, self.troubles = asyncio.Semaphore(remote.connections), list[Trouble]()

    async def offer(self, url: str) -> Offer:
        """What a server serves; raises ConfigError where it does not say so."""

        async def ask(url: str) -> Offer:
            try:
                return unpack_offer(await self._fetch("GET", f"{url}/health"))
            except WireError as error:
                raise ConfigError(f"urls={url} answers {error}; give a server of rewards") from error
            except Refusal as error:
                raise ConfigError(f"urls={error}; give a server of rewards, and token= for its token") from error

        found = await self._attempted([url], ask)
        if found is None:
            raise ConfigError(f"urls={self.troubles[-1]}; start scripts/serve_reward.py there, or leave it out")
        return found

    async def scores(
        self, index: int, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt], offer: Offer
    ) -> Rewards:
        """Scores of one request, by whichever server gives them; failures where none does."""

        async def ask(url: str) -> Rewards:
            body = pack_request(images, prompts)
            if len(body) > offer.limit:
                raise Trouble(f"{len(body)} bytes are over the limit={offer.limit} of {url}; lower batch")
            return unpack_rewards(await self._fetch("POST", f"{url}/score", body), len(images), offer)

        first = index % len(self.urls)
        found = await self._attempted(self.urls[first:] + self.urls[:first], ask)
        return failures(len(images), offer) if found is None else found

    def report(self, found: Rewards) -> None:
        """One line in the log for all that went wrong."""
        if self.troubles:
            what = f"{int(found.failed.sum())} of {len(found.failed)} images have no remote score"
            _log.warning("%s; %d requests failed, the last: %s", what, len(self.troubles), self.troubles[-1])

    async def _attempted(self, urls: Sequence[str], ask: Callable[[str], Awaitable[T]]) -> T | None:
        """The first answer of a server, going round them, longer and longer apart; None where there is none."""
        for attempt in range((self.remote.retries + 1) * len(urls)):
            if attempt and attempt % len(urls) == 0:
                await asyncio.sleep(self.remote.backoff * 2 ** (attempt // len(urls) - 1))
            url = urls[attempt % len(urls)]
            try:
                async with self.room:
                    return await ask(url)
            except WireError as error:
                self.troubles.append(Trouble(f"{url} answers {error}"))
            except Trouble as error:
                self.troubles.append(error)
        return None

    async def _fetch(self, method: str, url: str, body: bytes | None = None) -> bytes:
        """The body of a good reply; raises Trouble for any other, and for none."""
        try:
            async with (
                asyncio.timeout(self.remote.timeout),
                self.client.stream(method, url, content=body) as response,
            ):
                reply = await _read(response)
        except TimeoutError as error:
            raise Trouble(f"{url} gives no answer in {self.remote.timeout:g} s") from error
        except httpx2.HTTPError as error:
            raise Trouble(f"{url} cannot be reached ({type(error).__name__} {error})") from error
        if response.status_code != 200:
            kind = Refusal if 400 <= response.status_code < 500 else Trouble
            words = " ".join(reply[:200].decode(errors="replace").split())
            raise kind(f"{url} answers {response.status_code} {words}")
        return reply


@asynccontextmanager
async def _connected(remote: Remote, token: str) -> AsyncIterator[_Call]:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(headers=headers, verify=_trust(), timeout=None, limits=limits) as client:
        yield _Call(remote, client)


@functools.cache
def _trust() -> ssl.SSLContext:
    return httpx2.create_ssl_context()


async def _read(response: httpx2.Response) -> bytes:
    reply = bytearray()
    async for piece in response.aiter_bytes():
        reply += piece
        if len(reply) > REPLY:
            raise Trouble(f"{response.url} answers more than {REPLY} bytes")
    return bytes(reply)


def agreed(offers: Sequence[Offer]) -> Offer:
    """What all replicas serve, with the least of their limits; raises ConfigError where they differ."""
    kinds = sorted({f"{offer.reward} {dict(offer.weights)} {offer.parts}" for offer in offers})
    require(len(kinds) == 1, f"urls serve different rewards ({', '.join(kinds)}); give replicas of one")
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
        parts={name: torch.cat([found.parts[name] for found in rewards]).to(device) for name in rewards[0].parts},
        weights=rewards[0].weights,
        failed=torch.cat([found.failed for found in rewards]).to(device),
    )


def _is_url(text: str) -> bool:
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL:
        return False
    return url.scheme in ("http", "https") and bool(url.host)
