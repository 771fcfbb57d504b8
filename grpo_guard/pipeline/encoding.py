"""Encoding prompts: one at a time, and with a cache no more than once."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import pad

from grpo_guard.types import Condition, ConfigError, concatenate, map_tensors

Encode = Callable[[Sequence[str]], Condition]
SAMPLED = 64  # numbers of every weight by which encoders are told apart


def singly(encode: Encode) -> Encode:
    """Encode each text by itself, so that its row depends on no other text; the same text is encoded once."""

    def encoded(texts: Sequence[str]) -> Condition:
        rows = {text: encode([text]) for text in dict.fromkeys(texts)}
        return joined([rows[text] for text in texts])

    return encoded


def joined(conditions: Sequence[Condition]) -> Condition:
    """All their rows; where they differ in length, filled up with zeros that are masked."""
    longest = max(condition.tokens.shape[1] for condition in conditions)
    level = all(
        condition.tokens.shape[1] == longest and condition.mask is None for condition in conditions
    )
    return concatenate(
        conditions if level else [_filled(condition, longest) for condition in conditions]
    )


def _filled(condition: Condition, length: int) -> Condition:
    tokens, more = condition.tokens, length - condition.tokens.shape[1]
    counts = (
        tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
        if condition.mask is None
        else condition.mask
    )
    return dataclasses.replace(
        condition, tokens=pad(tokens, (0, 0, 0, more)), mask=pad(counts, (0, more))
    )


def cached(
    encode: Encode, encoders: Mapping[str, nn.Module], salt: str, folder: Path, device: torch.device
) -> Encode:
    """The same with a file per text in `folder`; the encoders are on the device only while a text is missing.

    A file is found by the weights of the encoders, by `salt` (what else changes an encoding) and by its text.
    """
    prefix = fingerprint(encoders, salt)

    def encoded(texts: Sequence[str]) -> Condition:
        files = {text: folder / f"{_digest(prefix, text)}.safetensors" for text in texts}
        found = {text: _read(file) for text, file in files.items()}
        missing = [text for text, condition in found.items() if condition is None]
        with _visiting(list(encoders.values()) if missing else [], device):
            found |= {text: _kept(encode([text]), files[text]) for text in missing}
        rows = [condition for text in texts if (condition := found[text]) is not None]
        return map_tensors(joined(rows), lambda x: x.to(device))

    return encoded


def fingerprint(encoders: Mapping[str, nn.Module], salt: str) -> str:
    """Told from the names, shapes and first numbers of all weights."""
    digest = hashlib.sha256(salt.encode())
    for name, encoder in sorted(encoders.items()):
        for key, weight in encoder.state_dict().items():
            digest.update(f"{name}.{key} {tuple(weight.shape)} {weight.dtype}".encode())
            digest.update(weight.detach().flatten()[:SAMPLED].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _digest(prefix: str, text: str) -> str:
    return hashlib.sha256(f"{prefix} {text}".encode()).hexdigest()


def _read(file: Path) -> Condition | None:
    """What is kept of a text; nothing where its file is missing or torn."""
    try:
        return Condition(**load_file(file))
    except (FileNotFoundError, SafetensorError, TypeError):
        return None


def _kept(condition: Condition, file: Path) -> Condition:
    """Write beside the place, then rename, so that what stands there is whole."""
    on_cpu = map_tensors(condition, lambda x: x.cpu().clone(memory_format=torch.contiguous_format))
    partial = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: x for name, x in vars(on_cpu).items() if x is not None}, partial)
        os.replace(partial, file)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"backbone.prompt_cache={file.parent} cannot be written ({error}); choose another folder or null"
        ) from error
    return on_cpu


@contextmanager
def _visiting(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Modules on a device for a while, on the CPU afterwards."""
    for module in modules:
        module.to(device)
    try:
        yield
    finally:
        for module in modules:
            module.to("cpu")
