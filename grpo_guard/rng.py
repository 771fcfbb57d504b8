"""Randomness by address, never by stream position: the same (seed, iteration, sample, step) gives the same noise.

World size, microbatch and resuming therefore change nothing, and noise can be regenerated instead of stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import torch
from jaxtyping import Float
from torch import Tensor

START = -1
"""The step number of a rollout's initial noise."""


def key(*address: int | str) -> int:
    """A 63-bit seed that depends on the whole address and nothing else."""
    digest = blake2b(repr(address).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*address: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator at the beginning of an address's own stream."""
    return torch.Generator(device).manual_seed(key(*address))


def normal(
    shape: Sequence[int], addresses: Iterable[tuple[int | str, ...]], device: torch.device | str
) -> Float[Tensor, "R ..."]:
    """Standard normal noise of the given shape for every address, float32 on the device."""
    return torch.stack(
        [
            torch.randn(*shape, generator=generator(*a, device=device), device=device)
            for a in addresses
        ]
    )


def permutation(count: int, *address: int | str) -> list[int]:
    """A permutation of range(count)."""
    return torch.randperm(count, generator=generator(*address)).tolist()
