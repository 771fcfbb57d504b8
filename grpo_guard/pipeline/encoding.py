"""Prompt encoding: each text by itself, and with a cache on disk only once ever."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from grpo_guard.messages import first_line, warn_once
from grpo_guard.tensor_files import write_like_python
from grpo_guard.types import Condition, concatenate, map_tensors

Encode = Callable[[Sequence[str]], Condition]
"""Encodes texts to a Condition with one row per text."""
EncodeBy = Callable[[Encode, Sequence[str]], Condition]
"""Encodes texts, calling the given function for those that it has to encode."""
SAMPLED = 64
"""Numbers of each weight that enter a fingerprint; hashing whole encoders would take minutes."""


_TOO_LONG = ("was truncated", "sequence length is longer")
"""What diffusers and transformers say of each text that is too long, several times over."""


class _SayOnce(logging.Filter):
    """Says in one line, once, that texts are too long."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not any(words in record.getMessage() for words in _TOO_LONG):
            return True
        warn_once(
            "some prompts are longer than a text encoder reads; the rest of them is ignored"
            " (CLIP reads 77 tokens, that of the embedded models 16 with a token for each letter of"
            " an unknown word, and T5 reads backbone.t5_tokens)"
        )
        return False


def say_truncation_once(pipeline_module: str) -> None:
    """Let a module of diffusers, and its tokenizers, say only once that texts are too long."""
    for name in (pipeline_module, "transformers.tokenization_utils_base"):
        logger = logging.getLogger(name)
        if not any(isinstance(known, _SayOnce) for known in logger.filters):
            logger.addFilter(_SayOnce())


def encode_each_once(encode: Encode, texts: Sequence[str]) -> Condition:
    """Encode each text by itself, so that its row depends on no other text, and only once per call.

    In a batch, padding and the order of sums would change a row by some rounding.
    """
    rows = {text: encode([text]) for text in dict.fromkeys(texts)}
    return join_conditions([rows[text] for text in texts])


def join_conditions(conditions: Sequence[Condition]) -> Condition:
    """Concatenate the rows of conditions; shorter ones are padded with zeros, which are masked.

    The result has a mask if lengths differ or if any of the conditions has one.
    """
    longest = max(condition.tokens.shape[1] for condition in conditions)
    needs_mask = any(
        condition.tokens.shape[1] != longest or condition.mask is not None
        for condition in conditions
    )
    if needs_mask:
        conditions = [_pad(condition, longest) for condition in conditions]
    return concatenate(conditions)


def _pad(condition: Condition, length: int) -> Condition:
    """Pad a condition to a length in tokens, with a mask that is False on the padding."""
    tokens = condition.tokens
    mask = condition.mask
    if mask is None:
        mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
    missing = length - tokens.shape[1]
    return dataclasses.replace(
        condition, tokens=pad(tokens, (0, 0, 0, missing)), mask=pad(mask, (0, missing))
    )


def cache_on_disk(
    encoders: Mapping[str, nn.Module], salt: str, folder: Path, device: torch.device
) -> EncodeBy:
    """Encode each text by itself and keep it in a file of `folder`; rows are on the device.

    The encoders visit the device only while a text is missing. A file's name is a hash of the
    encoders' weights, of `salt` (whatever else changes an encoding) and of the text. A file that
    cannot be written costs a warning, and its text is encoded again by the next run.
    """
    prefix = fingerprint(encoders, salt)

    def encode_texts(encode: Encode, texts: Sequence[str]) -> Condition:
        files = {text: folder / f"{_digest(prefix, text)}.safetensors" for text in texts}
        rows: dict[str, Condition] = {}
        missing: list[str] = []
        for text, file in files.items():
            row = _read(file)
            if row is None:
                missing.append(text)
            else:
                rows[text] = row
        with _on_device(list(encoders.values()) if missing else [], device):
            for text in missing:
                rows[text] = map_tensors(encode([text]), _to_cpu)
                _write(rows[text], files[text])
        joined = join_conditions([rows[text] for text in texts])
        return map_tensors(joined, lambda x: x.to(device))

    return encode_texts


def fingerprint(encoders: Mapping[str, nn.Module], salt: str) -> str:
    """Hash the names, shapes, dtypes and first numbers of all weights, and the salt."""
    digest = hashlib.sha256(salt.encode())
    for name, encoder in sorted(encoders.items()):
        for key, weight in encoder.state_dict().items():
            digest.update(f"{name}.{key} {tuple(weight.shape)} {weight.dtype}".encode())
            digest.update(weight.detach().flatten()[:SAMPLED].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _digest(prefix: str, text: str) -> str:
    return hashlib.sha256(f"{prefix} {text}".encode()).hexdigest()


def _read(file: Path) -> Condition | None:
    """Read a kept encoding; None if its file is missing, damaged or cannot be read."""
    try:
        return Condition(**load_file(file))
    except (OSError, SafetensorError, TypeError):
        return None


def _to_cpu(x: Tensor) -> Tensor:
    return x.cpu().clone(memory_format=torch.contiguous_format)


def _write(condition: Condition, file: Path) -> None:
    """Write an encoding to its file, or warn once that its folder cannot be written.

    The file is written in a folder of its own and then moved, so that no reader sees half of it,
    and processes of any machine do not meet.
    """
    tensors = {name: x for name, x in vars(condition).items() if x is not None}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".partial_") as folder:
            partial = Path(folder) / file.name
            with write_like_python(partial):
                save_file(tensors, partial)
            os.replace(partial, file)
    except (OSError, SafetensorError) as error:
        warn_once(
            f"backbone.prompt_cache={file.parent} cannot be written ({first_line(error)});"
            " the next run encodes its prompts again; free the disk, or choose another folder"
        )


@contextmanager
def _on_device(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Move modules to the device, and to the CPU at the end."""
    for module in modules:
        module.to(device)
    try:
        yield
    finally:
        for module in modules:
            module.to("cpu")
