"""Questions about images to a vision-language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import base64
import functools
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from grpo_guard.pixels import to_8_bit
from grpo_guard.remote.client import (
    ReplicaClient,
    Replicas,
    UselessAnswer,
    connect,
    finish,
    number_requests,
)
from grpo_guard.remote.tokens import read_token
from grpo_guard.remote.wire import WireError
from grpo_guard.schema import (
    Advice,
    AtMost,
    ConfigError,
    Name,
    NonNegative,
    PositiveInt,
    component,
    record,
    require,
)
from grpo_guard.types import Prompt

_HEADERS = {"content-type": "application/json"}
# What parsing and indexing raise if a reply is not JSON or has other fields.
_REPLY_ERRORS = (LookupError, RecursionError, TypeError, ValueError)


@record
class Question:
    """A question about some images."""

    text: str
    """The question, with the prompt in it."""
    images: tuple[str, ...]
    """The images as data URLs, in the order that the question speaks of them."""


@record
class Reply:
    """The reply of a model to a question."""

    text: str
    """What the model wrote."""
    finish_reason: str
    """Why it ended: "stop" if the reply is complete, "length" if it was cut off."""


Ask = Callable[[Sequence[Question]], Float[Tensor, " Q"]]
"""Q questions -> Q answers from 0 to 1; NaN for a question without a usable answer."""


@component
class VlmJudge(Replicas):
    """Base of the rewards that ask a vision-language model for a number about images.

    A reply without a number, with a number out of range, or cut off is no answer. The model would
    repeat it, so that endpoint is not asked the question again, but its replicas are.
    """

    model: str
    """Name of the model at the endpoints. `urls` are their base addresses, most often up to /v1."""
    question: str
    """Text of the question; `{prompt}` in it stands for the prompt."""
    answer: str
    """Regular expression with one group. The group of its last match in a reply is the number."""
    low: float
    """Smallest valid number; it means 0."""
    high: float
    """Largest valid number; it means 1."""
    max_tokens: Annotated[PositiveInt, AtMost(1_000_000), Advice("give the length of a reply")]
    """Largest length of a reply, in tokens."""
    temperature: Annotated[NonNegative, Advice("0 gives the likeliest reply")]
    """Sampling temperature of the model; 0 gives the likeliest reply."""
    seed: int
    """Seed of the model's sampling, sent with each question."""
    name: Name
    """Name of the score in the metrics."""
    compares: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            "{prompt}" in self.question,
            f"question={self.question!r} has no {{prompt}}; write it where the prompt belongs",
        )
        groups = _count_groups(self.answer)
        require(
            groups == 1,
            f"answer={self.answer} has {groups} groups, not one; put one pair of parentheses around"
            " the number",
        )
        require(
            self.low < self.high,
            f"low={self.low} is not below high={self.high};"
            " give the smallest and the largest valid number",
        )

    def accepts(self, prompt: Prompt) -> bool:
        """Accept every prompt."""
        return True

    weight_bytes: ClassVar[int] = 0
    """Always 0: the model's weights are on its endpoints."""

    def make_question(self, prompt: Prompt, *images: str) -> Question:
        """Return the question about images of a prompt, given as data URLs."""
        return Question(text=self.question.replace("{prompt}", prompt.text), images=images)

    def open(self) -> Ask:
        """Check that every endpoint has the model, and return the function that asks questions.

        Raises ConfigError if an endpoint does not answer or does not have the model.
        """
        self.check_servers()
        open_client = functools.partial(connect, self, read_token(self.token))
        numbers = number_requests()

        async def ask_all(questions: Sequence[Question]) -> Float[Tensor, " Q"]:
            async with open_client() as client:
                requests = [
                    client.ask_replicas(
                        next(numbers), functools.partial(self._ask, client, question)
                    )
                    for question in questions
                ]
                answers = await asyncio.gather(*requests)
                missing = answers.count(None)
                client.log_errors(
                    f"{missing} of {len(answers)} questions about pictures have no answer"
                )
            return torch.tensor([math.nan if answer is None else answer for answer in answers])

        return lambda questions: finish(ask_all(questions))

    def check_servers(self) -> None:
        """Raise ConfigError unless every endpoint answers and has the model."""

        async def check() -> None:
            async with connect(self, read_token(self.token)) as client:
                await asyncio.gather(*(_check_model(client, url, self.model) for url in self.urls))

        finish(check())

    async def _ask(self, client: ReplicaClient, question: Question, url: str) -> float:
        """Return an endpoint's answer from 0 to 1; raises UselessAnswer if it has no number."""
        body = pack_question(self, question)
        reply = await client.fetch("POST", f"{url}/chat/completions", body, _HEADERS)
        completion = unpack_reply(reply)
        try:
            number = parse_number(completion, self.answer, self.low, self.high)
        except WireError as error:
            raise UselessAnswer(f"{url} answers {error}") from error
        return (number - self.low) / (self.high - self.low)


async def _check_model(client: ReplicaClient, url: str, model: str) -> None:
    """Raise ConfigError unless an endpoint has a model."""
    models = await client.fetch_description(
        url,
        "/models",
        unpack_models,
        kind="an OpenAI-compatible endpoint up to /v1",
        start=f"start it there (vllm serve {model})",
    )
    names = ", ".join(models[:8]) + ", ..." * (len(models) > 8)
    require(
        model in models,
        f"model={model} is not at {url}, which has {names or 'none'}; give one of those",
    )


def encode_data_urls(images: Float[Tensor, "B 3 H W"]) -> list[str]:
    """Return images in [0, 1] as data URLs of PNG files with 8 bits per channel."""
    levels = to_8_bit(images).permute(0, 2, 3, 1).cpu().numpy()
    files = [_encode_png(Image.fromarray(picture)) for picture in levels]
    return [f"data:image/png;base64,{base64.b64encode(file).decode()}" for file in files]


def pack_question(judge: VlmJudge, question: Question) -> bytes:
    """Return a question as the JSON of a chat completion: the images, then the text."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in question.images]
    content = [*images, {"type": "text", "text": question.text}]
    request = {
        "model": judge.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": judge.max_tokens,
        "temperature": judge.temperature,
        "seed": judge.seed,
    }
    return json.dumps(request).encode()


def unpack_reply(body: bytes) -> Reply:
    """Return the first choice of a chat completion; raises WireError."""
    try:
        choice = json.loads(body)["choices"][0]
        text = choice["message"]["content"] or ""
        finish_reason = choice["finish_reason"]
    except _REPLY_ERRORS as error:
        raise WireError("what is no chat completion") from error
    if not isinstance(text, str):
        raise WireError("a chat completion that is not text")
    return Reply(text=text, finish_reason=str(finish_reason))


def unpack_models(body: bytes) -> list[str]:
    """Return the names in a list of models; raises WireError."""
    try:
        return [str(model["id"]) for model in json.loads(body)["data"]]
    except _REPLY_ERRORS as error:
        raise WireError("what is no list of models") from error


def parse_number(reply: Reply, pattern: str, low: float, high: float) -> float:
    """Return the number in a reply, from low to high.

    Raises WireError if the reply is cut off, has no number, or one out of range.
    """
    end = " ".join(reply.text.split())[-80:]
    if reply.finish_reason != "stop":
        raise WireError(
            f"a reply that ended because of {reply.finish_reason!r} ({end!r});"
            " raise max_tokens if that is 'length'"
        )
    matches = re.findall(pattern, reply.text)
    try:
        value = float(matches[-1])
    except (LookupError, ValueError) as error:
        raise WireError(f"no number where answer looks for one ({end!r})") from error
    if not low <= value <= high:
        raise WireError(f"{value:g}, outside low={low:g} to high={high:g} ({end!r})")
    return value


def _count_groups(pattern: str) -> int:
    try:
        return re.compile(pattern).groups
    except re.error as error:
        raise ConfigError(
            f"answer={pattern} is not a regular expression ({error}); correct it"
        ) from error


def _encode_png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    # fast: the files are sent once, and most often not far
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
