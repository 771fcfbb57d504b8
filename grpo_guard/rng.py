"""Randomness by address, never by stream position (docs/adr/0004).

The same (seed, iteration, sample, step) always gives the same noise. World size, microbatch and
resuming therefore change nothing, and noise can be regenerated instead of stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import torch
from jaxtyping import Float, Int
from torch import Tensor

START = -1
"""Step number in the address of a rollout's initial noise."""


def key(*address: int | str) -> int:
    """Return a 63-bit seed that depends on the whole address and on nothing else."""
    digest = blake2b(repr(address).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*address: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator at the start of the address's own stream."""
    return torch.Generator(device).manual_seed(key(*address))


def normal(
    shape: Sequence[int], addresses: Iterable[tuple[int | str, ...]], device: torch.device | str
) -> Float[Tensor, "R ..."]:
    """Draw standard normal noise of `shape` for every address, float32 on `device`."""
    # One generator per row is slow but keeps a row's noise independent of the rows beside it.
    rows = [
        torch.randn(*shape, generator=generator(*address, device=device), device=device)
        for address in addresses
    ]
    return torch.stack(rows)


def noise(
    address: tuple[int, int],
    samples: Int[Tensor, " R"],
    steps: Int[Tensor, " R"],
    shape: Sequence[int],
    device: torch.device | None = None,
) -> Float[Tensor, "R ..."]:
    """Regenerate the noise of each (sample, step) of the iteration at `address` (seed, iteration).

    `shape` is the shape of one latent; `samples` and `steps` give one row each. The noise is drawn
    on `device`, by default on theirs. Numbers on the CPU are read without waiting for a GPU.
    """
    rows = zip(samples.tolist(), steps.tolist(), strict=True)
    addresses = [(*address, sample, step) for sample, step in rows]
    return normal(shape, addresses, device or samples.device)


def permutation(count: int, *address: int | str) -> list[int]:
    """Return the permutation of range(count) that belongs to the address."""
    return torch.randperm(count, generator=generator(*address)).tolist()
