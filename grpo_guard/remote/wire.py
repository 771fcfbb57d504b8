"""The message format of remote rewards: images, prompts and scores as bytes.

Tensors travel as safetensors and everything else as JSON, so every bit arrives as it was sent and
nothing that arrives is executed (a pickle would be).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence, Set
from typing import Any, TypeVar, cast, get_type_hints

import torch
from beartype import BeartypeConf
from beartype.door import is_bearable
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from grpo_guard.schema import record
from grpo_guard.types import Clause, Prompt, Rewards

Fields = TypeVar("Fields")
MAX_SIDE = 16_384
"""Largest side of an image in px."""
MAX_ASPECT = 32
"""How many times as long as the other a side may be: a scorer that enlarges the shorter side would
otherwise need more memory than there is."""
MAX_NOTE_LINES = 16
"""The most lines of notes that are sent per image; further lines are cut off."""
MAX_NOTE_LENGTH = 200
"""The most characters of a line of notes; the rest is cut off."""
_INT_IS_FLOAT = BeartypeConf(is_pep484_tower=True)
# What json and safetensors raise for damaged bytes.
_PARSE_ERRORS = (SafetensorError, LookupError, RuntimeError, TypeError, ValueError, OverflowError)


class WireError(ValueError):
    """Bytes are not the message that was expected.

    The message is a phrase that says what they are instead, and completes "the server answers ...".
    """


@record
class Offer:
    """What a server scores."""

    reward: str
    """Name of the configured reward."""
    parts: tuple[str, ...]
    """Names of the reward's parts, in their order."""
    weights: Mapping[str, float]
    """Weights of the parts that the total sums."""
    limit: int
    """Largest number of bytes of a request."""


def pack_offer(offer: Offer) -> bytes:
    """Return an offer as JSON."""
    return json.dumps(dataclasses.asdict(offer)).encode()


def unpack_offer(body: bytes) -> Offer:
    """Return the offer that `pack_offer` packed; raises WireError."""
    fields = _parse_json(body)
    return _build_record(Offer, fields | {"parts": tuple(_get_list(fields, "parts"))})


def pack_request(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> bytes:
    """Return images, in their own dtype, and their prompts as bytes."""
    text = json.dumps({"prompts": [dataclasses.asdict(prompt) for prompt in prompts]}).encode()
    return save({"images": images.cpu().contiguous(), "json": _to_tensor(text)})


def unpack_request(body: bytes) -> tuple[Float[Tensor, "B 3 H W"], tuple[Prompt, ...]]:
    """Return the images and prompts that `pack_request` packed; raises WireError."""
    tensors = _load_tensors(body, {"images", "json"})
    images = tensors["images"]
    fields = _parse_json(_read_bytes(tensors["json"], "json"))
    has_shape = images.ndim == 4 and images.shape[1] == 3 and images.numel() > 0
    if not images.is_floating_point() or not has_shape:
        raise WireError(
            f"images of shape {tuple(images.shape)} and {images.dtype}, not floats of B 3 H W"
        )
    short, long = sorted(images.shape[2:])
    if long > min(MAX_SIDE, MAX_ASPECT * short):
        raise WireError(
            f"images of {short} x {long} px; a side has at most {MAX_SIDE} px, and {MAX_ASPECT}"
            " times those of the other"
        )
    prompts = tuple(unpack_prompt(row) for row in _get_list(fields, "prompts"))
    if len(prompts) != len(images):
        raise WireError(f"{len(prompts)} prompts for {len(images)} images")
    return images, prompts


def unpack_prompt(fields: Any) -> Prompt:
    """Return the prompt with these fields, as JSON or YAML has them; raises WireError."""
    clauses = {
        key: tuple(_unpack_clause(row) for row in _get_list(fields, key))
        for key in ("include", "exclude")
    }
    return _build_record(Prompt, fields | clauses)


def pack_rewards(rewards: Rewards) -> bytes:
    """Return total, failures, parts and notes as bytes.

    The weights are not sent: they are in the server's offer.
    """
    tensors = {"total": rewards.total, "failed": rewards.failed}
    tensors |= {f"part/{name}": part for name, part in rewards.parts.items()}
    if rewards.notes:
        notes = json.dumps({"notes": _shorten_notes(rewards.notes)}, ensure_ascii=False)
        tensors["notes"] = _to_tensor(notes.encode(errors="replace"))
    # the total is often a part too, and safetensors refuse tensors that share memory
    return save({name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()})


def unpack_rewards(body: bytes, count: int, offer: Offer) -> Rewards:
    """Return the rewards of `count` images that `pack_rewards` packed.

    An image whose total is not finite has failed, even if the server does not say so. Raises
    WireError if the bytes are not the offer's parts for that many images.
    """
    names = {"total", "failed", *(f"part/{name}" for name in offer.parts)}
    tensors = _load_tensors(body, names, optional={"notes"})
    text = tensors.pop("notes", None)
    notes = () if text is None else _unpack_notes(text, count)
    for name, tensor in tensors.items():
        has_dtype = tensor.dtype == torch.bool if name == "failed" else tensor.is_floating_point()
        if tensor.shape != (count,) or not has_dtype:
            raise WireError(
                f"{name} of shape {tuple(tensor.shape)} and {tensor.dtype} for {count} images"
            )
    failed = tensors["failed"] | ~tensors["total"].isfinite()
    return Rewards(
        total=tensors["total"].masked_fill(failed, math.nan),
        parts={name: tensors[f"part/{name}"] for name in offer.parts},
        weights=offer.weights,
        failed=failed,
        notes=notes,
    )


def _unpack_notes(text: Tensor, count: int) -> tuple[tuple[str, ...], ...]:
    notes = _get_list(_parse_json(_read_bytes(text, "notes")), "notes")
    are_lines = all(
        isinstance(lines, list) and all(isinstance(line, str) for line in lines) for lines in notes
    )
    if not are_lines or len(notes) != count:
        raise WireError(f"notes that are not lines of text on {count} images")
    return _shorten_notes(notes)


def _shorten_notes(notes: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        tuple(line[:MAX_NOTE_LENGTH] for line in lines[:MAX_NOTE_LINES]) for lines in notes
    )


def _to_tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _read_bytes(tensor: Tensor, name: str) -> bytes:
    """Return the bytes that `_to_tensor` packed; raises WireError if the tensor has no bytes."""
    if tensor.dtype != torch.uint8:
        raise WireError(f"{name} of {tensor.dtype}")
    return tensor.numpy().tobytes()


def _load_tensors(
    body: bytes, names: Set[str], optional: Set[str] = frozenset()
) -> dict[str, Tensor]:
    """Return the tensors of these names; raises WireError if one is missing or unknown."""
    try:
        tensors: dict[str, Tensor] = load(body)
    except _PARSE_ERRORS as error:
        raise WireError(f"{len(body)} bytes that are not safetensors") from error
    if not names <= set(tensors) <= names | optional:
        raise WireError(f"tensors {sorted(tensors)}, not {sorted(names)}")
    return tensors


def _parse_json(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except _PARSE_ERRORS as error:
        raise WireError("text that is not JSON") from error
    if not isinstance(content, dict):
        raise WireError("JSON that is not an object")
    return content


def _get_list(fields: Any, key: str) -> list[Any]:
    items = fields.get(key, []) if isinstance(fields, dict) else None
    if not isinstance(items, (list, tuple)):
        raise WireError(f"{key} that is not a list")
    return list(items)


def _unpack_clause(fields: Any) -> Clause:
    # JSON has lists where a clause has a tuple
    if isinstance(fields, dict) and isinstance(fields.get("position"), list):
        fields = fields | {"position": tuple(fields["position"])}
    return _build_record(Clause, fields)


def _build_record(cls: type[Fields], fields: Any) -> Fields:
    """Make a record; raises WireError if a field is missing, unknown or of another type."""
    try:
        made: Any = cls(**fields)
    except TypeError as error:
        raise WireError(f"fields that do not fit a {cls.__name__}") from error
    hints = get_type_hints(cls)
    for name, value in vars(made).items():
        if not is_bearable(value, hints[name], conf=_INT_IS_FLOAT):
            raise WireError(f"{cls.__name__}.{name} of type {type(value).__name__}")
    return cast(Fields, made)
