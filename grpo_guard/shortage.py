"""Recognises that memory did not suffice, among the errors of libraries."""

from __future__ import annotations

import torch


def is_shortage(error: BaseException) -> bool:
    """Return whether an error means that memory does not suffice, on a GPU or in the host."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)
