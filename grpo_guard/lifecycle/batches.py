"""How the samples of an iteration divide into processes, updates and microbatches."""

from __future__ import annotations

import math
from dataclasses import replace

from grpo_guard.schema import LATENT_BYTES, ConfigError, record, require

MOST_SAMPLES = 10_000_000
"""Bound on the samples of an iteration that nobody reaches in earnest."""


@record
class BatchSizes:
    """The batches of an iteration.

    Raises ConfigError, with the nearest setting that divides, if anything does not divide: a
    smaller last microbatch would be forwarded at another shape in replay than in the rollout, and
    half precision then gives other velocities.
    """

    prompts: int
    """Prompt instances of an iteration, on all processes."""
    repeats: int
    """Samples of each prompt instance: the size of a group."""
    rows: int
    """Training rows of one sample, one per denoising step that is replayed of it."""
    updates: int
    """Optimizer steps of an iteration; each has its own share of the samples."""
    processes: int
    """Processes that share the samples."""
    microbatch: int
    """Rows that one process forwards at a time."""

    def __post_init__(self) -> None:
        samples = (
            f"data.prompts={self.prompts} x data.repeats={self.repeats} = {self.samples} samples"
        )
        require(
            self.samples <= MOST_SAMPLES,
            f"{samples} need {self.samples * (self.rows + 1) * LATENT_BYTES // 10**9} GB of memory"
            f" or more for their latents; give at most {MOST_SAMPLES}",
        )
        per_process = f"{samples} on {self.processes} processes" if self.processes > 1 else samples
        _require_divisor("updates", self.updates, self.samples, samples)
        _require_divisor(
            "processes",
            self.processes,
            self.samples // self.updates,
            f"{samples} in {self.updates} updates",
        )
        # A microbatch must divide both: samples are drawn in it, rows are replayed in it.
        common = math.gcd(self.samples_here, self.rows_per_update)
        rows = f"{self.rows_per_update} rows per update ({per_process}, {self.rows} steps each)"
        samples_divide = self.samples_here % self.microbatch == 0
        _require_divisor(
            "microbatch", self.microbatch, common, rows if samples_divide else per_process
        )

    def largest(self, at_most: int) -> BatchSizes:
        """Return the batches with the largest microbatch that divides, of at most so many rows."""
        common = math.gcd(self.samples_here, self.rows_per_update)
        fitting = next(size for size in range(min(at_most, common), 0, -1) if common % size == 0)
        return replace(self, microbatch=fitting)

    def halved(self) -> BatchSizes:
        """Return the batches with half the microbatch, or the next smaller one that divides."""
        return self.largest(max(1, self.microbatch // 2))

    @property
    def samples(self) -> int:
        """Samples of an iteration, on all processes."""
        return self.prompts * self.repeats

    @property
    def samples_here(self) -> int:
        """Samples of an iteration on one process."""
        return self.samples // self.processes

    @property
    def rows_per_update(self) -> int:
        """Rows that one process replays for an optimizer step."""
        return self.samples_here // self.updates * self.rows

    @property
    def accumulation(self) -> int:
        """Microbatches whose gradients one process adds up for an optimizer step."""
        return self.rows_per_update // self.microbatch

    def describe(self) -> str:
        """Describe the batches in one line, for whoever starts the run."""
        here = (
            f", {self.samples_here} on each of {self.processes} processes"
            if self.processes > 1
            else ""
        )
        drawn = self.samples_here // self.microbatch
        microbatches = "1 microbatch" if drawn == 1 else f"{drawn} microbatches"
        updates = "1 update" if self.updates == 1 else f"{self.updates} updates"
        return (
            f"an iteration: {self.prompts} prompts x {self.repeats} = {self.samples} samples{here},"
            f" drawn in {microbatches} of {self.microbatch};"
            f" {updates} of {self.rows_per_update} rows ({self.rows} steps a sample),"
            f" accumulated over {self.accumulation}"
        )


def _require_divisor(key: str, size: int, count: int, what: str) -> None:
    """Raise ConfigError, naming the nearest divisor, unless `size` divides `count`."""
    if size > 0 and count % size == 0:
        return
    # Every divisor above the square root has a partner below it.
    small = [d for d in range(1, math.isqrt(count) + 1) if count % d == 0]
    divisors = sorted({*small, *(count // d for d in small)})
    nearest = min(divisors, key=lambda d: abs(d - size))
    raise ConfigError(f"{what} do not divide into {key}={size}; nearest that does: {nearest}")
