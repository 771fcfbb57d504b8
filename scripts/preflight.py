"""Is the clip range above the noise floor? python scripts/preflight.py <the overrides of train.py>

Samples as training would, replays what was sampled without any update, and shows how far from 1 the ratios already
are: in training's microbatches, one row at a time, with latents stored in half precision, and without guidance.
"""

from __future__ import annotations

import hydra
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from grpo_guard.diagnostics.noise_floor import Floor, measure, stored, verdict
from grpo_guard.session import Session, prepare, probe, remedies
from grpo_guard.types import Rows, Schedule, Trajectory
from lib import cli

console = Console()


@hydra.main(version_base="1.3", config_path=cli.CONF, config_name="train")
@cli.job
def main(cfg: DictConfig) -> None:
    """Measure every floor and say what follows."""
    session = prepare(cli.build(cfg))
    trajectory, rows = probe(session)
    floors = measured(session, trajectory, rows)
    for name, floor in floors.items():
        console.print(table(name, floor, session.schedule(0)))
    console.print(
        f"guidance multiplies the noise by {amplification(floors):.2f} (norm, 99th percentile, median step)"
    )
    console.print(verdict(floors["as trained"], remedies(rows)), soft_wrap=True)


def measured(session: Session, trajectory: Trajectory, rows: Rows) -> dict[str, Floor]:
    """The floor of every circumstance."""
    policy, clipping, old, size = (
        session.model.policy,
        session.clipping,
        session.exp.old_policy,
        session.exp.microbatch,
    )
    floors = {"as trained": measure(policy, trajectory, rows, clipping, size)}
    floors["one row at a time"] = measure(policy, trajectory, rows, clipping, 1)
    for dtype in (torch.bfloat16, torch.float16):
        kept = stored(trajectory, dtype)
        name, again = (
            f"latents stored as {dtype}".replace("torch.", ""),
            old(policy, kept, rows, size),
        )
        floors[name] = measure(policy, kept, again, clipping, size)
    trajectory, rows = probe(session, session.model.unguided())
    return floors | {
        "one row at a time, no guidance": measure(
            session.model.unguided(), trajectory, rows, clipping, 1
        )
    }


def amplification(floors: dict[str, Floor]) -> float:
    """The floor with guidance over the floor without, in the median step."""
    guided, plain = (
        floors["one row at a time"].norm[:, 1],
        floors["one row at a time, no guidance"].norm[:, 1],
    )
    return float((guided / plain).median()) if bool((plain > 0).all()) else float("nan")


def table(name: str, floor: Floor, schedule: Schedule) -> Table:
    """A line per trained step."""
    shown = Table(
        "step",
        "t",
        "raw median",
        "raw 99 %",
        "norm median",
        "norm 99 %",
        "of clip range",
        title=name,
    )
    for row, step in enumerate(floor.steps):
        values = [*floor.raw[row].tolist(), *floor.norm[row].tolist()]
        shown.add_row(
            str(step),
            f"{schedule.t[step]:.3f}",
            *(f"{v:.1e}" for v in values),
            f"{floor.share[row]:.2g}",
        )
    return shown


if __name__ == "__main__":
    cli.run(main)
