"""Serve a reward over HTTP to runs on this or other machines, which use it by `reward=remote`.

`application.py` has the HTTP endpoints, `batching.py` scores requests of several clients together.
"""

from __future__ import annotations

import ipaddress
import math
import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Annotated, Any

import torch
import uvicorn

from grpo_guard.parallel.kernels import keep_float32
from grpo_guard.parallel.ranks import Device
from grpo_guard.remote.tokens import read_token
from grpo_guard.remote.wire import Offer, WireError, unpack_prompt
from grpo_guard.reward import Reward, Scorer, load_scorer
from grpo_guard.schema import (
    Advice,
    ConfigError,
    Name,
    NonNegative,
    Positive,
    PositiveInt,
    Rule,
    component,
    record,
    require,
)
from grpo_guard.serve.application import RequestLimits, build_application
from grpo_guard.serve.batching import Batcher
from grpo_guard.types import Prompt


@component
class Service:
    """Serve a reward to clients that know the token."""

    reward: Reward
    """The reward to serve."""
    name: Name
    """Name of the reward that clients are shown; replicas must have the same name."""
    device: Device
    """Device of the reward: cpu, cuda, cuda:N, or auto for a GPU if there is one."""
    probe: Mapping[str, Any]
    """Fields of a prompt: `text`, and `include` if the reward needs it. A blank image is scored for
    this prompt before the first request, to check the reward and to learn its parts."""
    host: str
    """Address to serve at. 127.0.0.1 serves this machine only; any other needs a token."""
    port: Annotated[
        int, Rule(lambda x: 0 <= x < 65536, "is outside 0..65535", "0 takes any that is free")
    ]
    """Port to serve at; 0 takes any that is free."""
    token: str | None
    """Name of the environment variable with the token that clients must send; null: no token."""
    batch: PositiveInt
    """Largest number of images of several requests that are scored together. A larger request is
    scored on its own."""
    wait: Annotated[NonNegative, Advice("give seconds, or 0")]
    """Seconds that a request waits for others, to be scored together."""
    connections: PositiveInt
    """Largest number of open connections; further ones are answered with status 503, after which a
    run tries again."""
    held: PositiveInt
    """Largest number of requests in memory; further ones wait unread."""
    limit: PositiveInt
    """Largest size of a request in bytes."""
    timeout: Positive
    """Seconds within which a request must arrive."""

    def __post_init__(self) -> None:
        kind = self.device.split(":")[0]
        require(
            kind != "cuda" or torch.cuda.is_available(),
            f"device={self.device} is not on this machine; use device=auto or cpu",
        )
        require(
            self.token is not None or _is_loopback(self.host),
            f"host={self.host} lets other machines in;"
            " set token=... to the environment variable that holds a token",
        )

    def open(self) -> ReadyService:
        """Take the port, load the reward and score the probe.

        Raises ConfigError if the token, the port or the reward cannot be used.
        """
        token = read_token(self.token)
        with ExitStack() as stack:
            # the port is taken before the weights are loaded, which may take minutes
            bound = stack.enter_context(self._bind())
            device = torch.device(self._choose_device())
            keep_float32()
            score = _move_images(device, load_scorer("reward", self.reward, device))
            offer = self._probe(score)
            stack.pop_all()
        # images of two clients must not be compared with each other
        size = 0 if self.reward.compares else self.batch
        application = build_application(
            self.reward,
            Batcher(score, size, self.wait),
            offer,
            token,
            RequestLimits(
                requests=self.held, request_bytes=self.limit, upload_seconds=self.timeout
            ),
        )
        config = uvicorn.Config(
            application,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="on",
            http="h11",
            ws="none",
            loop="asyncio",
            limit_concurrency=self.connections,
            timeout_graceful_shutdown=math.ceil(self.timeout),
        )
        return ReadyService(server=uvicorn.Server(config), bound_socket=bound, offer=offer)

    def _bind(self) -> socket.socket:
        """Return a socket at the port that does not listen yet: clients are refused, not kept."""
        bound = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((self.host, self.port))
        except OSError as error:
            bound.close()
            # a name that cannot be resolved has a negative errno of its own
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise ConfigError(
                f"port={self.port} of host={self.host} cannot be used ({reason}); choose another"
            ) from error
        return bound

    def _choose_device(self) -> str:
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def _probe(self, score: Scorer) -> Offer:
        """Score a blank image and return what the reward offers."""
        prompt = self._unpack_probe()
        require(
            self.reward.accepts(prompt),
            f"probe.text={prompt.text!r} is not accepted by the reward; give another",
        )
        rewards = score(torch.full((1, 3, 64, 64), 0.5), [prompt])
        return Offer(
            reward=self.name,
            parts=tuple(rewards.parts),
            weights=dict(rewards.weights),
            limit=self.limit,
        )

    def _unpack_probe(self) -> Prompt:
        fields = dict(self.probe)
        try:
            return unpack_prompt(fields)
        except WireError as error:
            raise ConfigError(
                f"probe={fields} is not a prompt ({error}); give it a text"
            ) from error


@record
class ReadyService:
    """A service that has loaded its reward and taken its port."""

    server: uvicorn.Server
    """The server, which does not run yet."""
    bound_socket: socket.socket
    """Socket at the port."""
    offer: Offer
    """What is served."""

    @property
    def url(self) -> str:
        """Address of the service."""
        host, port = self.bound_socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self) -> None:
        """Serve until interrupted; requests that have arrived by then are answered."""
        with self.bound_socket:
            self.server.run([self.bound_socket])


def _move_images(device: torch.device, score: Scorer) -> Scorer:
    return lambda images, prompts: score(images.to(device), prompts)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
