"""Denoising steps and their noise."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from grpo_guard.command.verification.kept import Integers, Kept, Numbers
from grpo_guard.command.verification.settings import choose, last_name


def compute_gains(kept: Kept) -> dict[str, Numbers]:
    """Return x_gain, v_gain and std of each step from the times and the settings of the SDE."""
    t, t_next = kept.schedule["t"], kept.schedule["t_next"]
    inside = kept.schedule["trained"] > 0
    sde = kept.config["sde"]
    level = sde["level"]
    dt = t - t_next
    steps = {
        "Flow": lambda: _diffuse(t, dt, level**2 * t / (1 - np.where(t < 1, t, t_next))),
        "Dance": lambda: _diffuse(t, dt, np.full_like(t, level**2)),
        "Cps": lambda: _preserve(t, t_next, level),
    }
    stochastic = choose("sde", steps, last_name(sde))()
    plain = (np.ones_like(t), -dt, np.zeros_like(t))
    names = ("x_gain", "v_gain", "std")
    return {
        name: np.where(inside, noisy, still)
        for name, noisy, still in zip(names, stochastic, plain, strict=True)
    }


def _diffuse(t: Numbers, dt: Numbers, sigma_squared: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    x_gain = 1 - sigma_squared * dt / (2 * t)
    v_gain = -dt * (1 + sigma_squared * (1 - t) / (2 * t))
    return x_gain, v_gain, np.sqrt(sigma_squared * dt)


def _preserve(t: Numbers, t_next: Numbers, level: float) -> tuple[Numbers, Numbers, Numbers]:
    """x_next = (1 - t_next) (x - t v) + sqrt(t_next^2 - s^2) (x + (1 - t) v) + s eps."""
    s = t_next * np.sin(level * np.pi / 2)
    root = t_next * np.cos(level * np.pi / 2)
    return (1 - t_next) + root, (1 - t) * root - t * (1 - t_next), s


def draw_noise(kept: Kept, sample: Integers, step: Integers) -> Numbers:
    """Return the noise at the address (seed, iteration, sample, step), as a CPU draws it."""
    import torch

    rows = []
    for number, place in zip(sample.tolist(), step.tolist(), strict=True):
        address = repr((kept.seed, kept.iteration, number, place)).encode()
        key = int.from_bytes(blake2b(address, digest_size=8).digest(), "big") >> 1
        drawn = torch.randn(*kept.shape, generator=torch.Generator().manual_seed(key))
        rows.append(drawn.numpy().reshape(-1))
    return np.array(rows, dtype=np.float64)
