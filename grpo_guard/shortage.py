"""Recognises that memory did not suffice, among the errors of libraries."""

from __future__ import annotations

import torch

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
