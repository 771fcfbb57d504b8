"""Requests to replicas of one server: rounds over them, further and further apart, until one gives an answer."""

from __future__ import annotations

import asyncio
import functools
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import httpx2

from grpo_guard.remote.wire import WireError
from grpo_guard.types import ConfigError, component, require

T = TypeVar("T")
REPLY = 2**24
"""The most bytes of a reply; what is longer is none."""
BUSY = (408, 425, 429)
"""Of the statuses from 400 to 499 those that a later attempt need not meet."""
_log = logging.getLogger(__name__)


class Trouble(Exception):
    """An attempt that gave no answer: one line that names the server."""


class Refusal(Trouble):
    """An attempt that the server refused by a status of 400 to 499 that is not BUSY."""


class Settled(Trouble):
    """An attempt whose answer is of no use, and would be again: that server is not asked the same any more."""


@component
class Replicas:
    """Servers any of which will do, and how they are asked.

    A request that fails, or takes more than `timeout` seconds, goes to the next of `urls`; after a round over all of
    them it waits for `backoff` seconds, which double with each of `retries` further rounds. `connections` requests are
    under way at a time. `token` names the environment variable that holds the servers' token.
    """

    urls: Sequence[str]
    token: str | None
    connections: int
    timeout: float
    retries: int
    backoff: float

    def __post_init__(self) -> None:
        require(
            bool(self.urls) and not isinstance(self.urls, str),
            f"urls={self.urls} is no list; give at least one",
        )
        for url in self.urls:
            require(_is_url(url), f"urls={url} is no address; give one like http://127.0.0.1:8000")
        for key in ("connections", "timeout"):
            require(getattr(self, key) > 0, f"{key}={getattr(self, key)} is not positive")
        for key in ("retries", "backoff"):
            require(
                getattr(self, key) >= 0, f"{key}={getattr(self, key)} is negative; 0 does without"
            )


class Calls:
    """Requests that are under way together, and what went wrong with them."""

    def __init__(self, replicas: Replicas, client: httpx2.AsyncClient) -> None:
        self.replicas, self.client = replicas, client
        self.room, self.troubles = asyncio.Semaphore(replicas.connections), list[Trouble]()

    async def spread(self, index: int, ask: Callable[[str], Awaitable[T]]) -> T | None:
        """`attempted` at all replicas; the first to be asked is another for every index."""
        urls = [url.rstrip("/") for url in self.replicas.urls]
        first = index % len(urls)
        return await self.attempted(urls[first:] + urls[:first], ask)

    async def attempted(self, urls: Sequence[str], ask: Callable[[str], Awaitable[T]]) -> T | None:
        """The first answer of a server, going round them, longer and longer apart; None where there is none."""
        left = list(urls)
        for turn in range(self.replicas.retries + 1):
            if turn and left:
                await asyncio.sleep(self.replicas.backoff * 2 ** (turn - 1))
            for url in tuple(left):
                found = await self._once(url, ask)
                if not isinstance(found, Trouble):
                    return found
                self.troubles.append(found)
                if isinstance(found, Settled):
                    left.remove(url)
        return None

    async def told(
        self, address: str, path: str, read: Callable[[bytes], T], *, kind: str, start: str
    ) -> T:
        """What a server says of itself; raises ConfigError where it does not: `kind` and `start` are remedies."""

        async def ask(url: str) -> T:
            try:
                return read(await self.fetch("GET", url + path))
            except WireError as error:
                raise ConfigError(f"urls={url} answers {error}; give {kind}") from error
            except Refusal as error:
                raise ConfigError(f"urls={error}; give {kind}, and token= for its token") from error

        found = await self.attempted([address.rstrip("/")], ask)
        if found is None:
            raise ConfigError(f"urls={self.troubles[-1]}; {start}, or leave it out")
        return found

    async def _once(self, url: str, ask: Callable[[str], Awaitable[T]]) -> T | Trouble:
        try:
            async with self.room:
                return await ask(url)
        except WireError as error:
            return Trouble(f"{url} answers {error}")
        except Trouble as error:
            return error

    async def fetch(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """The body of a good reply; raises Trouble for any other, and for none."""
        timeout = self.replicas.timeout
        try:
            async with (
                asyncio.timeout(timeout),
                self.client.stream(method, url, content=body, headers=headers) as response,
            ):
                reply = await _read(response)
        except TimeoutError as error:
            raise Trouble(f"{url} gives no answer in {timeout:g} s") from error
        except httpx2.HTTPError as error:
            raise Trouble(f"{url} cannot be reached ({type(error).__name__} {error})") from error
        if response.status_code != 200:
            kind = (
                Refusal
                if 400 <= response.status_code < 500 and response.status_code not in BUSY
                else Trouble
            )
            words = " ".join(reply[:200].decode(errors="replace").split())
            raise kind(f"{url} answers {response.status_code} {words}")
        return reply

    def report(self, outcome: str) -> None:
        """One line in the log for all that went wrong, with what came of it."""
        if self.troubles:
            _log.warning(
                "%s; %d requests failed, the last: %s",
                outcome,
                len(self.troubles),
                self.troubles[-1],
            )


@asynccontextmanager
async def connected(replicas: Replicas, token: str) -> AsyncIterator[Calls]:
    """Calls with connections of their own."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(
        headers=headers, verify=_trust(), timeout=None, limits=limits
    ) as client:
        yield Calls(replicas, client)


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


def _is_url(text: str) -> bool:
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL:
        return False
    return url.scheme in ("http", "https") and bool(url.host)
