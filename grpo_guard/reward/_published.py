"""Sizes of published scorers, so that memory can be predicted without their weights."""

from __future__ import annotations

import torch

from grpo_guard.assets import read_architectures


def published_bytes(model: str, dtype: str) -> int:
    """Return the bytes of a published scorer's weights in a dtype.

    A folder, a shipped asset and a hub id whose size is not known count as 0.
    """
    parameters: int = read_architectures()["scorers"].get(model, 0)
    itemsize: int = getattr(torch, dtype).itemsize
    return parameters * itemsize
