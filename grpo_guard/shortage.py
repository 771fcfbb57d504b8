"""Recognises that memory or a disk did not suffice, among the errors of libraries."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

_SIGNS = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "STATUS_ALLOC_FAILED",
    "'out of memory'",
    "[CUDA]: out of memory",
)
"""What errors say that are no OutOfMemoryError: of the host, the runtime and the driver of CUDA,
cuBLAS and cuDNN, NCCL, and Triton."""


def is_shortage(error: BaseException) -> bool:
    """Return whether an error means that memory does not suffice, on a GPU or in the host."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or any(sign in str(error) for sign in _SIGNS)


@contextmanager
def raise_os_errors(place: Path) -> Iterator[None]:
    """Raise OSError, with `place` as its file, if safetensors cannot write one.

    Its own error is none of Python's, whether the disk is full or the folder is gone.
    """
    try:
        yield
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        number = int(code[1])
        raise OSError(number, os.strerror(number), str(place)) from error
