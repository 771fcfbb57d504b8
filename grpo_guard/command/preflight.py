"""Is the clip range above the noise floor? python scripts/preflight.py <the overrides of train.py>

Draws samples as training does, replays them without any update, and prints how far from 1 the
ratios already are: in the microbatches of training, one row at a time, with latents stored in half
precision, and without guidance.
"""

from __future__ import annotations

from collections.abc import Mapping

import hydra
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from grpo_guard.console import cli
from grpo_guard.diagnostics.noise_floor import (
    NoiseFloor,
    describe_floor,
    measure_noise_floor,
    round_latents,
)
from grpo_guard.session import Session, draw_probe, prepare
from grpo_guard.types import Rows, Schedule, Trajectory, Velocity

AS_TRAINED = "as trained"
ONE_ROW = "one row at a time"
NO_GUIDANCE = "one row at a time, no guidance"

console = Console()


@hydra.main(version_base="1.3", config_path=cli.CONF, config_name="train")
@cli.job
def main(cfg: DictConfig) -> None:
    """Measure the floor under each condition and print what to change."""
    session = prepare(cli.build(cfg))
    trajectory, rows = draw_probe(session, session.policy)
    floors = measure_floors(session, trajectory, rows)
    for name, floor in floors.items():
        console.print(floor_table(name, floor, session.schedule(0)))
    console.print(
        f"guidance multiplies the noise by {guidance_factor(floors):.2f}"
        " (norm, 99th percentile, median step)"
    )
    console.print(describe_floor(floors[AS_TRAINED], rows), soft_wrap=True)


def measure_floors(session: Session, trajectory: Trajectory, rows: Rows) -> dict[str, NoiseFloor]:
    """Measure the floor under each condition."""
    exp = session.exp

    def measure(
        policy: Velocity, trajectory: Trajectory, rows: Rows, microbatch: int
    ) -> NoiseFloor:
        limits = session.limits()
        return measure_noise_floor(policy, trajectory, rows, exp.clipping, limits, microbatch)

    floors = {
        AS_TRAINED: measure(session.policy, trajectory, rows, exp.microbatch),
        ONE_ROW: measure(session.policy, trajectory, rows, 1),
    }
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        rounded = round_latents(trajectory, dtype)
        # The old means, if any, belong to the latents, so they are computed anew.
        rows_again = exp.old_policy(session.policy, rounded, rows, exp.microbatch)
        floor = measure(session.policy, rounded, rows_again, exp.microbatch)
        floors[f"latents stored as {name}"] = floor
    unguided = session.model.unguided()
    floors[NO_GUIDANCE] = measure(unguided, *draw_probe(session, unguided), 1)
    return floors


def guidance_factor(floors: Mapping[str, NoiseFloor]) -> float:
    """Return the floor with guidance over that without, in the median step; nan if that is 0."""
    guided = floors[ONE_ROW].norm[:, 1]
    unguided = floors[NO_GUIDANCE].norm[:, 1]
    return float((guided / unguided).median()) if bool((unguided > 0).all()) else float("nan")


def floor_table(name: str, floor: NoiseFloor, schedule: Schedule) -> Table:
    """Make a table with one line per trained step."""
    quantiles = ("raw median", "raw 99 %", "norm median", "norm 99 %")
    table = Table("step", "t", *quantiles, "of clip range", title=name)
    for row, step in enumerate(floor.steps):
        values = [*floor.raw[row].tolist(), *floor.norm[row].tolist()]
        table.add_row(
            str(step),
            f"{schedule.t[step]:.3f}",
            *(f"{value:.1e}" for value in values),
            f"{floor.share[row]:.2g}",
        )
    return table


def start() -> None:
    """Run the command line."""
    cli.run(main)


if __name__ == "__main__":
    start()
