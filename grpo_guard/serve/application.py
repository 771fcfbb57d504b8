"""The HTTP application of a reward server: two endpoints, the token and the limits."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from grpo_guard.remote.wire import Offer, WireError, pack_offer, pack_rewards, unpack_request
from grpo_guard.reward import Reward
from grpo_guard.schema import record
from grpo_guard.serve.batching import Batcher
from grpo_guard.types import Prompt, Rewards

_log = logging.getLogger(__name__)

_STATUS_OF_ERROR: Mapping[type[Exception], int] = {
    WireError: 400,
    ClientDisconnect: 400,
    TimeoutError: 408,
}


@record
class RequestLimits:
    """What a server takes in, so that its memory is bounded and no client blocks others."""

    requests: int
    """Number of requests in memory; further ones wait unread."""
    request_bytes: int
    """Largest size of a request in bytes."""
    upload_seconds: float
    """Seconds within which a request must arrive."""


@record
class Endpoints:
    """The endpoints: GET /health says what is served, POST /score scores images."""

    reward: Reward
    """The reward, which is asked which prompts it accepts."""
    batcher: Batcher
    """Scores the requests."""
    offer: Offer
    """What is served."""
    token: str
    """Token that requests must carry; "" accepts all requests."""
    limits: RequestLimits
    """Limits of the requests."""
    slots: asyncio.Semaphore
    """Free places for requests in memory."""

    async def get_health(self, request: Request) -> Response:
        """Answer with the offer."""
        _check_token(request, self.token)
        return Response(pack_offer(self.offer), media_type="application/json")

    async def post_score(self, request: Request) -> Response:
        """Answer with the scores of the images, or with status 500 if they cannot be scored."""
        _check_token(request, self.token)
        async with self.slots:
            async with asyncio.timeout(self.limits.upload_seconds):
                body = await _read_body(request, self.limits.request_bytes)
                images, prompts = unpack_request(body)
            _check_prompts(prompts, self.reward)
            result = await self.batcher.submit(images, prompts, request.is_disconnected)
        return _make_response(result)


def build_application(
    reward: Reward, batcher: Batcher, offer: Offer, token: str, limits: RequestLimits
) -> Starlette:
    """Return the application, which runs the batcher as long as it is served."""
    endpoints = Endpoints(
        reward=reward,
        batcher=batcher,
        offer=offer,
        token=token,
        limits=limits,
        slots=asyncio.Semaphore(limits.requests),
    )

    @asynccontextmanager
    async def run_batcher(application: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()
        batcher.close()

    return Starlette(
        routes=[
            Route("/health", endpoints.get_health),
            Route("/score", endpoints.post_score, methods=["POST"]),
        ],
        lifespan=run_batcher,
        exception_handlers={
            kind: partial(_answer_error, status) for kind, status in _STATUS_OF_ERROR.items()
        },
    )


async def _answer_error(status: int, request: Request, error: Exception) -> Response:
    return PlainTextResponse(str(error) or type(error).__name__, status)


def _check_token(request: Request, token: str) -> None:
    received = request.headers.get("authorization", "").removeprefix("Bearer ")
    # compare_digest takes the same time wherever the two differ, so a token cannot be guessed
    if token and not hmac.compare_digest(received.encode(), token.encode()):
        raise HTTPException(401, "the token is missing or wrong")


def _check_prompts(prompts: Sequence[Prompt], reward: Reward) -> None:
    for prompt in prompts:
        if not reward.accepts(prompt):
            raise HTTPException(422, f"the reward does not accept the prompt {prompt.text!r}")


async def _read_body(request: Request, limit: int) -> bytes:
    """Return the body of a request; refuse it as soon as it is known to be too large."""
    body = bytearray()
    _check_size(int(request.headers.get("content-length", 0)), limit)
    async for piece in request.stream():
        body += piece
        _check_size(len(body), limit)
    return bytes(body)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise HTTPException(413, f"a request of more than limit={limit} bytes")


def _make_response(result: asyncio.Future[Rewards]) -> Response:
    error = result.exception()
    if error is None:
        return Response(pack_rewards(result.result()), media_type="application/octet-stream")
    line = f"{type(error).__name__}: {' '.join(str(error).split())}"
    _log.warning("a request could not be scored: %s", line)
    raise HTTPException(500, line)
