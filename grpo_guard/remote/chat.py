"""Questions about pictures, to a vision-language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import base64
import functools
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from grpo_guard.remote.client import Calls, Refusal, Replicas, Settled, connected
from grpo_guard.remote.wire import WireError, secret
from grpo_guard.types import ConfigError, Prompt, component, record, require

_JSON = {"content-type": "application/json"}
_BROKEN = (
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)  # of JSON that is none, or of other fields


@record
class Question:
    """What is asked about some pictures, which are data URLs."""

    text: str
    pictures: tuple[str, ...]


@record
class Reply:
    """What a model wrote, and why it ended: "stop" where it had said all."""

    text: str
    ended: str


Ask = Callable[[Sequence[Question]], Float[Tensor, " Q"]]
"""The answers to questions, from 0 to 1; NaN where there is none."""


@component
class Judge(Replicas):
    """A vision-language model that answers a `question` about pictures by a number from `low` to `high`.

    `urls` are an endpoint's base addresses, which mostly end in /v1. `{prompt}` in the question stands for the prompt.
    The number is what the one group of the regular expression `answer` has in its last match. A reply without a number,
    with one outside the range, or cut off at `max_tokens` is no answer; as a model repeats itself, its endpoint is not
    asked again, but others of `urls` are.
    """

    model: str
    question: str
    answer: str
    low: float
    high: float
    max_tokens: int
    temperature: float
    seed: int
    name: str
    compares: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            "{prompt}" in self.question,
            f"question={self.question!r} has no {{prompt}}; write it where that goes",
        )
        require(
            _groups(self.answer) == 1,
            f"answer={self.answer} has not one group; put brackets around the number",
        )
        scale = -math.inf < self.low < self.high < math.inf
        require(
            scale,
            f"low={self.low} is not below high={self.high}; give the least and the most of an answer",
        )
        require(
            self.max_tokens > 0,
            f"max_tokens={self.max_tokens} is not positive; give the length of a reply",
        )
        require(
            self.temperature >= 0,
            f"temperature={self.temperature} is negative; 0 is the likeliest reply",
        )

    def accepts(self, prompt: Prompt) -> bool:
        """Any text will do."""
        return True

    def about(self, prompt: Prompt, *pictures: str) -> Question:
        """The question about pictures of a prompt."""
        return Question(text=self.question.replace("{prompt}", prompt.text), pictures=pictures)

    def open(self) -> Ask:
        """Asks, once every endpoint has told that it has the model; raises ConfigError where one does not."""
        connect = functools.partial(connected, self, secret(self.token))

        async def check() -> None:
            async with connect() as calls:
                await asyncio.gather(*(_check(calls, url, self.model) for url in self.urls))

        async def answers(questions: Sequence[Question]) -> Float[Tensor, " Q"]:
            async with connect() as calls:
                asked = (
                    calls.spread(i, functools.partial(self._ask, calls, q))
                    for i, q in enumerate(questions)
                )
                found = await asyncio.gather(*asked)
                calls.report(
                    f"{found.count(None)} of {len(found)} questions about pictures have no answer"
                )
            return torch.tensor([math.nan if answer is None else answer for answer in found])

        asyncio.run(check())
        return lambda questions: asyncio.run(answers(questions))

    async def _ask(self, calls: Calls, question: Question, url: str) -> float:
        """An endpoint's answer; raises Settled where it would give no other."""
        try:
            body = await calls.fetch(
                "POST", f"{url}/chat/completions", pack_question(self, question), _JSON
            )
        except Refusal as error:
            raise Settled(str(error)) from error
        reply = unpack_reply(body)
        try:
            return (number(reply, self.answer, self.low, self.high) - self.low) / (
                self.high - self.low
            )
        except WireError as error:
            raise Settled(f"{url} answers {error}") from error


async def _check(calls: Calls, url: str, model: str) -> None:
    """Raise ConfigError unless an endpoint has a model."""
    kind, start = "an OpenAI-compatible endpoint up to /v1", f"start it there (vllm serve {model})"
    found = await calls.told(url, "/models", unpack_models, kind=kind, start=start)
    names = ", ".join(found[:8]) + ", ..." * (len(found) > 8)
    require(
        model in found,
        f"model={model} is not at {url}, which has {names or 'none'}; give one of those",
    )


def data_urls(images: Float[Tensor, "B 3 H W"]) -> list[str]:
    """Images in [0, 1] as PNG of 8 bits a channel, which lose nothing more."""
    levels = images.float().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [
        f"data:image/png;base64,{base64.b64encode(_png(Image.fromarray(level))).decode()}"
        for level in levels
    ]


def pack_question(judge: Judge, question: Question) -> bytes:
    """JSON: the pictures in their order, then the text."""
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in question.pictures]
    content = [*pictures, {"type": "text", "text": question.text}]
    settings = {
        "max_tokens": judge.max_tokens,
        "temperature": judge.temperature,
        "seed": judge.seed,
    }
    return json.dumps(
        {"model": judge.model, "messages": [{"role": "user", "content": content}], **settings}
    ).encode()


def unpack_reply(body: bytes) -> Reply:
    """The first choice of a completion; raises WireError."""
    try:
        choice = json.loads(body)["choices"][0]
        text, ended = choice["message"]["content"] or "", choice["finish_reason"]
    except _BROKEN as error:
        raise WireError("what is no completion of a chat") from error
    if not isinstance(text, str):
        raise WireError("a completion that is no text")
    return Reply(text=text, ended=str(ended))


def unpack_models(body: bytes) -> list[str]:
    """The names in a list of models; raises WireError."""
    try:
        return [str(model["id"]) for model in json.loads(body)["data"]]
    except _BROKEN as error:
        raise WireError("what is no list of models") from error


def number(reply: Reply, answer: str, low: float, high: float) -> float:
    """The number in a reply; raises WireError where it is cut off, has none, or one outside low to high."""
    end = " ".join(reply.text.split())[-80:]
    if reply.ended != "stop":
        raise WireError(
            f"a reply that ends by {reply.ended!r} ({end!r}); give more max_tokens where that is 'length'"
        )
    found = re.findall(answer, reply.text)
    try:
        value = float(found[-1])
    except (LookupError, ValueError) as error:
        raise WireError(f"no number where answer looks for one ({end!r})") from error
    if not low <= value <= high:
        raise WireError(f"{value:g}, outside low={low:g} to high={high:g} ({end!r})")
    return value


def _groups(pattern: str) -> int:
    try:
        return re.compile(pattern).groups
    except re.error as error:
        raise ConfigError(
            f"answer={pattern} is no regular expression ({error}); mend it"
        ) from error


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
