"""Requests to replicas of one server, with retries: each is tried in rounds until one answers."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import os
import ssl
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

import httpx2

from grpo_guard.remote.tokens import check_token_name
from grpo_guard.remote.wire import WireError
from grpo_guard.schema import (
    NOT_EMPTY,
    AtMost,
    ConfigError,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Rule,
    component,
    require,
)

Answer = TypeVar("Answer")
MAX_REPLY_BYTES = 2**24
"""A longer reply is an error; scores and chat completions are far shorter."""
TEMPORARY_STATUSES = (408, 425, 429)
"""The HTTP statuses from 400 to 499 that may be gone at the next attempt."""
Url = Annotated[
    str,
    Rule(
        lambda x: x.startswith(("http://", "https://")),
        "is not an address",
        "give one like http://127.0.0.1:8000",
    ),
    Rule(
        lambda x: "@" not in x,
        "has a name or a password, which config.yaml would show",
        "put the secret into an environment variable, and its name into the key token",
    ),
]
"""Address of a server."""
_log = logging.getLogger(__name__)


class RequestError(Exception):
    """An attempt gave no answer. The message is one line that names the server."""


class UselessAnswer(RequestError):
    """The answer cannot be used, and the server would give it again: do not ask it again."""


class RequestRefused(UselessAnswer):
    """The server refused the request, by a status of 400 to 499 that is not temporary."""


@component
class Replicas:
    """Servers that do the same job, and how requests to them are retried.

    A request that fails goes to the next server. After a round over all of them, it waits before
    the next round.
    """

    urls: Annotated[Sequence[Url], NOT_EMPTY]
    """Addresses of the replicas, such as [http://a:8000, http://b:8000]; at least one."""
    token: str | None
    """Name of the environment variable that holds the servers' token; null sends none."""
    connections: Annotated[PositiveInt, AtMost(10_000)]
    """Largest number of requests that are under way at a time."""
    timeout: Positive
    """Seconds after which a request has failed, including its wait at the server."""
    retries: Annotated[NonNegativeInt, AtMost(20)]
    """Number of rounds over `urls` after the first; 0 gives up after one round."""
    backoff: NonNegative
    """Seconds to wait before the second round; the wait doubles with each further round."""

    def __post_init__(self) -> None:
        check_token_name(self.token)
        for url in self.urls:
            require(
                _is_url(url), f"urls={url} is not an address; give one like http://127.0.0.1:8000"
            )

    def check_servers(self) -> None:
        """Raise ConfigError unless every server answers and has what is asked of it."""
        raise NotImplementedError


class ReplicaClient:
    """Sends requests that are under way together, and keeps the errors for the log."""

    def __init__(self, replicas: Replicas, client: httpx2.AsyncClient) -> None:
        self.replicas = replicas
        self.client = client
        self.slots = asyncio.Semaphore(replicas.connections)
        self.errors: list[RequestError] = []

    async def ask_replicas(
        self, index: int, ask: Callable[[str], Awaitable[Answer]]
    ) -> Answer | None:
        """Return the first answer of a replica, or None if no replica gives one.

        `ask` sends the request to a URL. Request number `index` (`number_requests`) starts with
        another replica than the request before it.
        """
        urls = [url.rstrip("/") for url in self.replicas.urls]
        first = index % len(urls)
        return await self._try_in_rounds(urls[first:] + urls[:first], ask)

    async def fetch_description(
        self, address: str, path: str, parse: Callable[[bytes], Answer], *, kind: str, start: str
    ) -> Answer:
        """Return what one server says of itself under a path.

        Raises ConfigError if it does not answer or is of another kind. `kind` (what server to give)
        and `start` (how to start it) become the remedies in the message.
        """

        async def ask(url: str) -> Answer:
            try:
                return parse(await self.fetch("GET", url + path))
            except WireError as error:
                raise ConfigError(f"urls={url} answers {error}; give {kind}") from error
            except RequestRefused as error:
                raise ConfigError(f"urls={error}; give {kind}, and token= for its token") from error

        description = await self._try_in_rounds([address.rstrip("/")], ask, self._say_wait)
        if description is None:
            raise ConfigError(f"urls={self.errors[-1]}; {start}, or leave it out")
        return description

    async def fetch(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """Return the body of a reply of status 200; raises RequestError for anything else."""
        timeout = self.replicas.timeout
        try:
            async with (
                # httpx2's own timeout starts anew with every byte that arrives
                asyncio.timeout(timeout),
                self.client.stream(method, url, content=body, headers=headers) as response,
            ):
                reply = await _read_reply(response)
        except TimeoutError as error:
            raise RequestError(f"{url} gives no answer in {timeout:g} s") from error
        except httpx2.HTTPError as error:
            reason = f"{type(error).__name__} {error}"
            raise RequestError(f"{url} cannot be reached ({reason})") from error
        if response.status_code != 200:
            raise _status_error(url, response.status_code, reply)
        return reply

    def log_errors(self, outcome: str) -> None:
        """Log one line for all errors, with their outcome; log nothing if there were none."""
        if self.errors:
            _log.warning(
                "%s; %d requests failed, the last: %s", outcome, len(self.errors), self.errors[-1]
            )

    def _say_wait(self) -> None:
        """Say once, after a first round that failed, how long the server is waited for."""
        seconds = self.replicas.backoff * (2**self.replicas.retries - 1)
        _log.warning("%s; asking again for %g s", self.errors[-1], seconds)

    async def _try_in_rounds(
        self,
        urls: Sequence[str],
        ask: Callable[[str], Awaitable[Answer]],
        before_waiting: Callable[[], None] = lambda: None,
    ) -> Answer | None:
        remaining = list(urls)
        for turn in range(self.replicas.retries + 1):
            if turn == 1 and remaining:
                before_waiting()
            if turn and remaining:
                await asyncio.sleep(self.replicas.backoff * 2 ** (turn - 1))
            for url in tuple(remaining):
                answer = await self._try_once(url, ask)
                if not isinstance(answer, RequestError):
                    return answer
                self.errors.append(answer)
                if isinstance(answer, UselessAnswer):
                    remaining.remove(url)
        return None

    async def _try_once(
        self, url: str, ask: Callable[[str], Awaitable[Answer]]
    ) -> Answer | RequestError:
        try:
            async with self.slots:
                return await ask(url)
        except WireError as error:
            return RequestError(f"{url} answers {error}")
        except RequestError as error:
            return error


def number_requests() -> Iterator[int]:
    """Return numbers for all requests of a process, by which they spread over the replicas.

    They go on from one batch to the next, and those of each process of a run begin elsewhere:
    a batch may be a single request, and all of these would go to the first replica.
    """
    rank = os.environ.get("RANK", "0")
    return itertools.count(int(rank) if rank.isdecimal() else 0)


def finish(work: Coroutine[Any, Any, Answer]) -> Answer:
    """Run a coroutine to its end and return its result."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    # Notebooks run every cell in an event loop, and a thread has only one at a time.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


@asynccontextmanager
async def connect(replicas: Replicas, token: str) -> AsyncIterator[ReplicaClient]:
    """Open a client with connections of its own; `token` is sent unless it is empty."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    limits = httpx2.Limits(max_connections=None)  # ReplicaClient.slots limits them
    async with httpx2.AsyncClient(
        headers=headers, verify=_ssl_context(), timeout=None, limits=limits
    ) as client:
        yield ReplicaClient(replicas, client)


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    return httpx2.create_ssl_context()  # reads all certificates, so once per process


async def _read_reply(response: httpx2.Response) -> bytes:
    reply = bytearray()
    async for piece in response.aiter_bytes():
        reply += piece
        if len(reply) > MAX_REPLY_BYTES:
            raise RequestError(f"{response.url} answers more than {MAX_REPLY_BYTES} bytes")
    return bytes(reply)


def _status_error(url: str, status: int, reply: bytes) -> RequestError:
    words = " ".join(reply[:200].decode(errors="replace").split())
    refused = 400 <= status < 500 and status not in TEMPORARY_STATUSES
    kind = RequestRefused if refused else RequestError
    return kind(f"{url} answers {status} {words}")


def _is_url(text: str) -> bool:
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL:
        return False
    return url.scheme in ("http", "https") and bool(url.host)
