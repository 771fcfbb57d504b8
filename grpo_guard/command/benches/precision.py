"""The table of `bench.py precision`."""

from __future__ import annotations

import torch
from rich.table import Table

from grpo_guard.gaussian import advance, drift
from grpo_guard.ratio import log_ratio_norm
from grpo_guard.types import Step

CHANGES = (1e-2, 1e-3, 1e-4)
"""Root mean square changes of the mean between two policies."""
CLIP_RANGE = 2e-6
"""The published clip range of Guard, which the errors should be well below."""


def compare_precision() -> Table:
    """Show the largest absolute errors of log r_norm in float32 over 16 rows.

    The latent has 65536 dimensions, and the step has a standard deviation of 0.2.
    """
    table = Table(
        "rms change of the mean", "closed form", "difference of log-probabilities", "clip range"
    )
    for change in CHANGES:
        errors = [f"{error:.1e}" for error in measure_errors(change)]
        table.add_row(f"{change:.0e}", *errors, f"{CLIP_RANGE:.1e}")
    return table


def measure_errors(
    change: float, std: float = 0.2, dimensions: int = 65_536
) -> tuple[float, float]:
    """Measure the errors of log r_norm against float64: (closed form, subtraction)."""
    generator = torch.Generator().manual_seed(0)
    eps, old, direction = torch.randn(3, 16, dimensions, generator=generator)
    new = old + change * direction
    s = torch.full((16,), std)
    x_next = advance(Step(mean=old, std=s, gain=s), eps)
    exact = (eps.double() * (new.double() - old.double())).mean(1)
    closed = log_ratio_norm(drift(Step(mean=new, std=s, gain=s), x_next, eps))
    before, after = (-(x_next - mean).square().mean(1) / (2 * s.square()) for mean in (old, new))
    subtracted = s * (after - before + (new - old).square().mean(1) / (2 * s.square()))
    return float((closed - exact).abs().max()), float((subtracted - exact).abs().max())
