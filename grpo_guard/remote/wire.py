"""Images, prompts and scores as bytes: safetensors and JSON, so that every bit arrives and nothing is executed."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence, Set
from typing import Any, TypeVar, cast, get_type_hints

import torch
from beartype import BeartypeConf
from beartype.door import is_bearable
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from grpo_guard.types import Clause, Prompt, Rewards, record, require

R = TypeVar("R")
_TOWER = BeartypeConf(is_pep484_tower=True)
LINES, LENGTH = 16, 200
"""The most lines of notes that are sent of an image, and the most characters of each; what is longer is cut."""
_BROKEN = (
    SafetensorError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)  # of libraries that read damaged bytes


class WireError(ValueError):
    """Bytes that do not say what they should: one line."""


@record
class Offer:
    """What a server scores: the configured reward's name, its parts in order, their weights in the total.

    `limit` is the most bytes that a request may have.
    """

    reward: str
    parts: tuple[str, ...]
    weights: Mapping[str, float]
    limit: int


def pack_offer(offer: Offer) -> bytes:
    """JSON."""
    return json.dumps(dataclasses.asdict(offer)).encode()


def unpack_offer(body: bytes) -> Offer:
    """Of `pack_offer`; raises WireError."""
    fields = _json(body)
    return _typed(Offer, fields | {"parts": tuple(_list(fields, "parts"))})


def pack_request(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> bytes:
    """The images as they are, in their dtype, and their prompts."""
    text = json.dumps({"prompts": [dataclasses.asdict(prompt) for prompt in prompts]}).encode()
    return save(
        {
            "images": images.cpu().contiguous(),
            "json": torch.frombuffer(bytearray(text), dtype=torch.uint8),
        }
    )


def unpack_request(body: bytes) -> tuple[Float[Tensor, "B 3 H W"], tuple[Prompt, ...]]:
    """Of `pack_request`; raises WireError."""
    tensors = _tensors(body, {"images", "json"})
    images, fields = tensors["images"], _json(tensors["json"].numpy().tobytes())
    if (
        not images.is_floating_point()
        or images.ndim != 4
        or images.shape[1] != 3
        or not images.numel()
    ):
        raise WireError(
            f"images of shape {tuple(images.shape)} and {images.dtype}, not floats of B 3 H W"
        )
    prompts = tuple(unpack_prompt(row) for row in _list(fields, "prompts"))
    if len(prompts) != len(images):
        raise WireError(f"{len(prompts)} prompts for {len(images)} images")
    return images, prompts


def unpack_prompt(fields: Any) -> Prompt:
    """A prompt from its fields as JSON or YAML have them; raises WireError."""
    clauses = {
        key: tuple(_clause(row) for row in _list(fields, key)) for key in ("include", "exclude")
    }
    return _typed(Prompt, fields | clauses)


def pack_rewards(rewards: Rewards) -> bytes:
    """Total, failures and parts, in their dtype, and notes, if there are any; the offer names parts and weights."""
    parts = {f"part/{name}": part for name, part in rewards.parts.items()}
    tensors = {"total": rewards.total, "failed": rewards.failed, **parts, **_pack_notes(rewards)}
    return save(
        {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    )  # safetensors share nothing


def unpack_rewards(body: bytes, count: int, offer: Offer) -> Rewards:
    """Of `pack_rewards` for `count` images; a total that is no number has failed, whatever is said of it.

    Raises WireError where the reply is none, or is not of the offer's parts.
    """
    tensors = _tensors(
        body, {"total", "failed", *(f"part/{name}" for name in offer.parts)}, {"notes"}
    )
    text = tensors.pop("notes", None)
    notes = () if text is None else _unpack_notes(text, count)
    for name, tensor in tensors.items():
        kind = tensor.dtype == torch.bool if name == "failed" else tensor.is_floating_point()
        if tensor.shape != (count,) or not kind:
            raise WireError(
                f"{name} of shape {tuple(tensor.shape)} and {tensor.dtype} for {count} images"
            )
    failed = tensors["failed"] | ~tensors["total"].isfinite()
    parts = {name: tensors[f"part/{name}"] for name in offer.parts}
    total = tensors["total"].masked_fill(failed, math.nan)
    return Rewards(total=total, parts=parts, weights=offer.weights, failed=failed, notes=notes)


def _pack_notes(rewards: Rewards) -> dict[str, Tensor]:
    if not rewards.notes:
        return {}
    text = json.dumps({"notes": _cut(rewards.notes)}, ensure_ascii=False).encode(errors="replace")
    return {"notes": torch.frombuffer(bytearray(text), dtype=torch.uint8)}


def _unpack_notes(text: Tensor, count: int) -> tuple[tuple[str, ...], ...]:
    found = _list(_json(text.numpy().tobytes()), "notes")
    sound = all(
        isinstance(lines, list) and all(isinstance(line, str) for line in lines) for lines in found
    )
    if not sound or len(found) != count or text.dtype != torch.uint8:
        raise WireError(f"notes that are no lines of text on {count} images")
    return _cut(found)


def _cut(notes: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(line[:LENGTH] for line in lines[:LINES]) for lines in notes)


def secret(variable: str | None) -> str:
    """The token in an environment variable, "" where none is named; raises ConfigError where it is not set."""
    found = "" if variable is None else os.environ.get(variable, "")
    sound = found.isascii() and found.isprintable() and " " not in found
    require(
        variable is None or bool(found),
        f"token={variable} is not in the environment; set that variable",
    )
    require(
        sound,
        f"token={variable} holds more than printable ASCII without spaces; choose another token",
    )
    return found


def _tensors(body: bytes, names: set[str], more: Set[str] = frozenset()) -> dict[str, Tensor]:
    """The tensors of these names, and any of `more`; raises WireError where there are others, or none."""
    try:
        found: dict[str, Tensor] = load(body)
    except _BROKEN as error:
        raise WireError(f"{len(body)} bytes that are no safetensors") from error
    if not names <= set(found) <= names | more:
        raise WireError(f"tensors {sorted(found)}, not {sorted(names)}")
    return found


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except _BROKEN as error:
        raise WireError("text that is no JSON") from error
    if not isinstance(found, dict):
        raise WireError("JSON that is no object")
    return found


def _list(fields: Any, key: str) -> list[Any]:
    found = fields.get(key, []) if isinstance(fields, dict) else None
    if not isinstance(found, (list, tuple)):
        raise WireError(f"no list of {key}")
    return list(found)


def _clause(fields: Any) -> Clause:
    placed = isinstance(fields, dict) and isinstance(fields.get("position"), list)
    return _typed(Clause, fields | {"position": tuple(fields["position"])} if placed else fields)


def _typed(cls: type[R], fields: Any) -> R:
    """A record of these fields; raises WireError where one is missing, unknown or of another type."""
    try:
        made: Any = cls(**fields)
    except TypeError as error:
        raise WireError(f"fields that make no {cls.__name__}") from error
    hints = get_type_hints(cls)
    wrong = [
        name
        for name, value in vars(made).items()
        if not is_bearable(value, hints[name], conf=_TOWER)
    ]
    if wrong:
        raise WireError(
            f"{cls.__name__}.{wrong[0]} of type {type(getattr(made, wrong[0])).__name__}"
        )
    return cast(R, made)
