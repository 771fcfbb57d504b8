"""A reward over HTTP: requests of several clients are scored together, and none of them is answered with a guess."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import math
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import uvicorn
from jaxtyping import Float
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from torch import Tensor

from grpo_guard.remote.wire import (
    Offer,
    WireError,
    pack_offer,
    pack_rewards,
    secret,
    unpack_prompt,
    unpack_request,
)
from grpo_guard.reward import Reward, Scorer
from grpo_guard.types import Prompt, Rewards, component, record, require

_log = logging.getLogger(__name__)


@component
class Service:
    """Serves a reward at `host` and `port` (0: any that is free) to whoever knows the token.

    Whatever arrives within `wait` seconds, or while others are scored, is scored together, up to `batch` images and
    never less than a request. `held` requests of at most `limit` bytes are in memory, further ones wait outside. A body
    must arrive within `timeout` seconds. `token` names the environment variable that holds the token; null: there is
    none. One blank image of `probe`, a prompt, is scored before the first request.
    """

    reward: Reward
    name: str
    device: str
    probe: Mapping[str, Any]
    host: str
    port: int
    token: str | None
    batch: int
    wait: float
    held: int
    limit: int
    timeout: float

    def __post_init__(self) -> None:
        for key in ("batch", "held", "limit", "timeout"):
            require(getattr(self, key) > 0, f"{key}={getattr(self, key)} is not positive")
        kind = self.device.split(":")[0]
        require(
            kind in ("auto", "cpu", "cuda"),
            f"device={self.device} is unknown; choose auto, cpu, cuda or cuda:N",
        )
        require(
            kind != "cuda" or torch.cuda.is_available(),
            f"device={self.device} is not here; use device=auto or cpu",
        )
        require(
            0 <= self.port < 65536,
            f"port={self.port} is outside 0..65535; 0 takes any that is free",
        )
        require(self.wait >= 0, f"wait={self.wait} is negative; give seconds, or 0")
        require(
            self.token is not None or _loopback(self.host),
            f"host={self.host} lets other machines in; set token=... to the environment variable that holds a token",
        )

    def open(self) -> Served:
        """Load the reward, try it and take the port; raises ConfigError where one of them cannot be."""
        token = secret(self.token)
        with ExitStack() as stack:
            door = stack.enter_context(self._door())
            device = torch.device(_best() if self.device == "auto" else self.device)
            score = on(device, self.reward.load(device))
            offer = self._tried(score)
            stack.pop_all()
        config = uvicorn.Config(
            _application(self, score, offer, token), log_config=None, log_level="warning", access_log=False,
            lifespan="on", http="h11", ws="none", loop="asyncio", timeout_graceful_shutdown=math.ceil(self.timeout),
        )  # fmt: skip
        return Served(server=uvicorn.Server(config), door=door, offer=offer)

    def _door(self) -> socket.socket:
        """A socket that does not listen yet, so that nobody waits in vain while weights are loaded."""
        door = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((self.host, self.port))
        except OSError as error:
            door.close()
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            require(
                False,
                f"port={self.port} of host={self.host} cannot be had ({reason}); choose another",
            )
        return door

    def _tried(self, score: Scorer) -> Offer:
        """What the reward gives for a blank image."""
        prompt = _probe(self.probe)
        require(
            self.reward.accepts(prompt),
            f"probe.text={prompt.text!r} is not accepted by the reward; give another",
        )
        found = score(torch.full((1, 3, 64, 64), 0.5), [prompt])
        return Offer(
            reward=self.name,
            parts=tuple(found.parts),
            weights=dict(found.weights),
            limit=self.limit,
        )


@record
class Served:
    """A service that is loaded and has its port."""

    server: uvicorn.Server
    door: socket.socket
    offer: Offer

    @property
    def url(self) -> str:
        """Where it is."""
        host, port = self.door.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self) -> None:
        """Serve until interrupted; what has arrived by then is answered."""
        with self.door:
            self.server.run([self.door])


@record
class Job:
    """A request that waits to be scored; `gone` tells whether anybody still waits for it."""

    images: Float[Tensor, "B 3 H W"]
    prompts: tuple[Prompt, ...]
    gone: Callable[[], Awaitable[bool]]
    answer: asyncio.Future[Rewards]


class Batches:
    """One thread that scores; requests that arrive meanwhile are scored together next."""

    def __init__(self, score: Scorer, size: int, wait: float) -> None:
        self.score, self.size, self.wait = score, size, wait
        self.jobs: asyncio.Queue[Job] = asyncio.Queue()
        self.thread = ThreadPoolExecutor(1)

    async def __call__(
        self, images: Tensor, prompts: tuple[Prompt, ...], gone: Callable[[], Awaitable[bool]]
    ) -> Any:
        """The future of a request's scores, done."""
        answer: asyncio.Future[Rewards] = asyncio.get_running_loop().create_future()
        self.jobs.put_nowait(Job(images=images, prompts=prompts, gone=gone, answer=answer))
        await asyncio.wait([answer])
        return answer

    async def run(self) -> None:
        """Score what comes, for ever."""
        while True:
            waiting = [await self.jobs.get()]
            await asyncio.sleep(self.wait)
            while not self.jobs.empty():
                waiting.append(self.jobs.get_nowait())
            for jobs in together(waiting, self.size):
                await self._answer([job for job in jobs if not await _left(job)])

    async def _answer(self, jobs: Sequence[Job]) -> None:
        """Score jobs together; where that fails, each alone, so that it fails only for those that it must."""
        if not jobs:
            return
        outcome = asyncio.wrap_future(self.thread.submit(scores, self.score, jobs))
        await asyncio.wait([outcome])
        error = outcome.exception()
        if error is None:
            for job, found in zip(jobs, outcome.result(), strict=True):
                job.answer.set_result(found)
        elif len(jobs) == 1:
            jobs[0].answer.set_exception(error)
        else:
            for job in jobs:
                await self._answer([job])


def on(device: torch.device, score: Scorer) -> Scorer:
    """The scorer, of images from wherever."""
    return lambda images, prompts: score(images.to(device), prompts)


async def _left(job: Job) -> bool:
    left = await job.gone()
    if left:
        job.answer.set_exception(ClientDisconnect())
    return left


def together(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """Jobs whose images can be stacked, up to `size` images unless one job has more, in order of arrival."""
    found: dict[object, list[list[Job]]] = {}
    for job in jobs:
        groups = found.setdefault((job.images.shape[1:], job.images.dtype), [[]])
        if groups[-1] and sum(len(other.images) for other in groups[-1]) + len(job.images) > size:
            groups.append([])
        groups[-1].append(job)
    return [group for groups in found.values() for group in groups]


def scores(score: Scorer, jobs: Sequence[Job]) -> list[Rewards]:
    """The scores of every job, from one call of the scorer."""
    found = score(
        torch.cat([job.images for job in jobs]), [prompt for job in jobs for prompt in job.prompts]
    )
    sizes = [len(job.images) for job in jobs]
    ends = list(accumulate(sizes))
    totals, failed = found.total.split(sizes), found.failed.split(sizes)
    parts = {name: part.split(sizes) for name, part in found.parts.items()}
    return [
        Rewards(
            total=totals[i],
            parts={name: part[i] for name, part in parts.items()},
            weights=found.weights,
            failed=failed[i],
            notes=found.notes[end - size : end],
        )
        for i, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]


def _best() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _probe(fields: Mapping[str, Any]) -> Prompt:
    try:
        return unpack_prompt(dict(fields))
    except WireError as error:
        require(False, f"probe={dict(fields)} is no prompt ({error}); give it a text")
        raise


def _application(service: Service, score: Scorer, offer: Offer, token: str) -> Starlette:
    size = 0 if service.reward.compares else service.batch  # pictures of two clients never meet
    batches, room = Batches(score, size, service.wait), asyncio.Semaphore(service.held)

    async def health(request: Request) -> Response:
        _check_token(request, token)
        return Response(pack_offer(offer), media_type="application/json")

    async def answer(request: Request) -> Response:
        _check_token(request, token)
        async with room:
            async with asyncio.timeout(service.timeout):
                images, prompts = unpack_request(await _body(request, service.limit))
            _check_prompts(prompts, service.reward)
            found = await batches(images, prompts, request.is_disconnected)
        return _reply(found)

    @asynccontextmanager
    async def life(application: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(batches.run())
        yield
        task.cancel()
        batches.thread.shutdown()

    return Starlette(
        routes=[Route("/health", health), Route("/score", answer, methods=["POST"])],
        lifespan=life,
        exception_handlers={kind: partial(_refuse, status) for kind, status in _REFUSED.items()},
    )


_REFUSED: Mapping[type[Exception], int] = {WireError: 400, ClientDisconnect: 400, TimeoutError: 408}


async def _refuse(status: int, request: Request, error: Exception) -> Response:
    return PlainTextResponse(str(error) or type(error).__name__, status)


def _check_token(request: Request, token: str) -> None:
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if token and not hmac.compare_digest(given.encode(), token.encode()):
        raise HTTPException(401, "the token is missing or wrong")


def _check_prompts(prompts: Sequence[Prompt], reward: Reward) -> None:
    refused = next((prompt for prompt in prompts if not reward.accepts(prompt)), None)
    if refused is not None:
        raise HTTPException(422, f"the reward does not accept the prompt {refused.text!r}")


async def _body(request: Request, limit: int) -> bytes:
    """What was posted; refused as soon as it is known to be too large."""
    body = bytearray()
    _check_size(int(request.headers.get("content-length", 0)), limit)
    async for piece in request.stream():
        body += piece
        _check_size(len(body), limit)
    return bytes(body)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise HTTPException(413, f"a request of more than limit={limit} bytes")


def _reply(found: asyncio.Future[Rewards]) -> Response:
    error = found.exception()
    if error is None:
        return Response(pack_rewards(found.result()), media_type="application/octet-stream")
    line = f"{type(error).__name__}: {' '.join(str(error).split())}"
    _log.warning("a request could not be scored: %s", line)
    raise HTTPException(500, line)
