"""Time an iteration of several objectives side by side: python scripts/bench.py [--rounds 5] [overrides of train.py]

Rounds alternate between the objectives, so that a machine whose speed drifts still gives fair ratios; the table shows
medians, and each objective's time over the first's, pair by pair.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence

from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.progress import track
from rich.table import Table

import cli
from grpo_guard.train import Session, iterate, prepare

PARTS = ("rollout", "reward", "update", "total")


def sessions(objectives: Sequence[str], overrides: Sequence[str]) -> dict[str, Session]:
    """A loaded experiment per objective, alike in everything else."""
    with initialize_config_dir(cli.CONF, version_base="1.3"):
        fixed = [*overrides, "output=unused", "logger=none"]
        composed = {name: compose("train", [*fixed, f"clipping={name}"]) for name in objectives}
    return {name: prepare(cli.build(cfg)) for name, cfg in composed.items()}


def measure(session: Session, iteration: int) -> dict[str, float]:
    """Seconds of an iteration and of its parts."""
    _, metrics = iterate(session, iteration)
    samples = session.exp.data.prompts * session.exp.data.repeats
    parts = {part: metrics[f"time/{part}"].value for part in PARTS[:-1]}
    return parts | {"total": samples / metrics["throughput/images_per_s"].value}


def table(rounds: Mapping[str, list[dict[str, float]]]) -> Table:
    """Medians in seconds and paired ratios."""
    first = next(iter(rounds))
    shown = Table("objective", *(f"{part} s" for part in PARTS), f"total / {first}")
    for name, rows in rounds.items():
        ratios = [row["total"] / base["total"] for row, base in zip(rows, rounds[first], strict=True)]
        medians = [f"{statistics.median(row[part] for row in rows):.2f}" for part in PARTS]
        shown.add_row(name, *medians, f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="counted iterations of each objective, after one warm-up")
    parser.add_argument("--objectives", nargs="+", default=["vanilla", "guard"], help="names under conf/clipping")
    args, overrides = parser.parse_known_args()
    loaded = sessions(args.objectives, overrides)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in loaded}
    for iteration in track(range(args.rounds + 1), "timing"):
        for name, session in loaded.items():
            rounds[name].append(measure(session, iteration))
    Console().print(table({name: rows[1:] for name, rows in rounds.items()}))


if __name__ == "__main__":
    main()
