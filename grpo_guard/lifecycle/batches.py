"""How the samples of an iteration divide into processes, updates and microbatches."""

from __future__ import annotations

import math

from grpo_guard.types import record, require


@record
class BatchSizes:
    """The batches of an iteration: what is given (samples, and what fits a device), and what follows from it.

    `rows` are those of one sample, one per step that is replayed of it. Raises ConfigError, with the nearest settings
    that would do, where anything does not divide: a ragged microbatch would be forwarded at another shape in training
    than in the rollout.
    """

    prompts: int
    repeats: int
    rows: int
    updates: int
    processes: int
    microbatch: int

    def __post_init__(self) -> None:
        counted = (
            f"data.prompts={self.prompts} x data.repeats={self.repeats} = {self.samples} samples"
        )
        shared = f"{counted} on {self.processes} processes" if self.processes > 1 else counted
        _divides("updates", self.updates, self.samples, counted)
        _divides(
            "processes",
            self.processes,
            self.samples // self.updates,
            f"{counted} in {self.updates} updates",
        )
        both = math.gcd(self.samples_here, self.rows_per_update)
        rows = f"{self.rows_per_update} rows per update ({shared}, {self.rows} steps each)"
        what = rows if self.samples_here % self.microbatch == 0 else shared
        _divides("microbatch", self.microbatch, both, what)

    @property
    def samples(self) -> int:
        """Of an iteration, on all processes."""
        return self.prompts * self.repeats

    @property
    def samples_here(self) -> int:
        """Of an iteration, on one process."""
        return self.samples // self.processes

    @property
    def rows_per_update(self) -> int:
        """That one process replays for an optimizer step."""
        return self.samples_here // self.updates * self.rows

    @property
    def accumulation(self) -> int:
        """Microbatches whose gradients one process adds up for an optimizer step."""
        return self.rows_per_update // self.microbatch

    def describe(self) -> str:
        """One line for whoever starts the run."""
        here = (
            f", {self.samples_here} on each of {self.processes} processes"
            if self.processes > 1
            else ""
        )
        return (
            f"an iteration: {self.prompts} prompts x {self.repeats} = {self.samples} samples{here}, drawn in"
            f" {self.samples_here // self.microbatch} microbatches of {self.microbatch}; {self.updates} updates of"
            f" {self.rows_per_update} rows ({self.rows} steps a sample), accumulated over {self.accumulation}"
        )


def _divides(key: str, size: int, count: int, what: str) -> None:
    nearest = min((d for d in range(1, count + 1) if count % d == 0), key=lambda d: abs(d - size))
    require(
        count % size == 0, f"{what} do not divide into {key}={size}; nearest that does: {nearest}"
    )
