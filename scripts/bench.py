"""What objectives and rewards cost, and how exact they are: python scripts/bench.py objectives|rewards|...

objectives    seconds of an iteration, objective beside objective; further overrides go to train.py's configuration
diagnostics   Guard with everything that is measured, over vanilla with nothing: seconds, and bytes kept per image
precision     the error of RatioNorm in float32, in closed form and as a difference of log-probabilities
rewards       images a second of rewards, with random weights where the published ones are large
asynchronous  the share of a reward's seconds that is hidden behind the rollout; overrides such as reward=ocr
spelling      how many words OCR reads, by font and size
memory        the most bytes on a device: small runs as predicted and as measured, and the shipped presets as predicted;
              with overrides, part by part, of the run that they compose, and with --measure beside that run here
scaling       strategy by strategy: what two processes exchange, as predicted and as counted, and how their time
              compares with that of one with half the images; on paper, what SD3.5-M and FLUX.1-dev exchange on 8
              and 64 GPUs, and the largest model that fits
throughput    images a second of rollout and update with random weights, operations a second, and the share of what the
              GPU could do (MFU), of the run that overrides name; without them of a small one, and the recipes on paper

Rounds alternate between the variants, so that a machine whose speed drifts still gives fair ratios; tables show
medians, and each variant's time over the first's, pair by pair.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from unittest.mock import patch

import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benches import memory as footprint
from benches import rewards as pace
from benches import scaling, throughput
from benches.spelling import spelling
from grpo_guard.gaussian import advance, drift
from grpo_guard.ratio import log_ratio_norm
from grpo_guard.rollout import noise, replay_steps
from grpo_guard.session import Session, prepare, probe
from grpo_guard.train import iterate
from grpo_guard.types import Replay, Rows, Step, Trajectory, map_tensors
from grpo_guard.watch.none import away
from lib import cli

PARTS = ("rollout", "reward", "update", "total")
console = Console()


def sessions(objectives: Sequence[str], overrides: Sequence[str]) -> dict[str, Session]:
    """A loaded experiment per objective, alike in everything else."""
    with initialize_config_dir(cli.CONF, version_base="1.3"):
        fixed = [*overrides, "output=unused", "logger=none"]
        composed = {name: compose("train", [*fixed, f"clipping={name}"]) for name in objectives}
    return {name: prepare(cli.build(cfg)) for name, cfg in composed.items()}


def measure(session: Session, iteration: int) -> dict[str, float]:
    """Seconds of an iteration and of its parts."""
    _, metrics = iterate(session, iteration)
    return {part: metrics[f"time/{part}"].value for part in PARTS}


def timed(
    variants: Mapping[str, tuple[Session, AbstractContextManager[object]]], count: int
) -> dict[str, list[dict[str, float]]]:
    """Iterations of every variant in turn, after one of each that is not counted."""
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for iteration in track(range(count + 1), "timing"):
        for name, (session, circumstances) in variants.items():
            with circumstances:
                rounds[name].append(measure(session, iteration))
    return {name: rows[1:] for name, rows in rounds.items()}


def table(rounds: Mapping[str, list[dict[str, float]]]) -> Table:
    """Medians in seconds and paired ratios."""
    first = next(iter(rounds))
    shown = Table("variant", *(f"{part} s" for part in PARTS), f"total / {first}")
    for name, rows in rounds.items():
        ratios = [
            row["total"] / base["total"] for row, base in zip(rows, rounds[first], strict=True)
        ]
        medians = [f"{statistics.median(row[part] for row in rows):.2f}" for part in PARTS]
        shown.add_row(
            name,
            *medians,
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
        )
    return shown


def bare(session: Session, trajectory: Trajectory, rows: Rows, count: int) -> Replay:
    """`train.accumulate` without anything that is only measured."""
    x_next = trajectory.x[rows.sample, rows.step + 1]
    proposed = replay_steps(session.model.policy, trajectory, rows)
    eps = noise(
        trajectory.address, trajectory.batch.sample[rows.sample], rows.step, x_next.shape[1:]
    )
    moved = drift(proposed, x_next, eps)
    objective = session.clipping(moved, rows, trajectory.schedule)
    (objective.loss.sum() / count).backward()  # type: ignore[no-untyped-call]
    none = torch.zeros_like(proposed.std)
    return map_tensors(
        Replay(rows=rows, drift=moved, objective=objective, penalty=none, gradient=none),
        Tensor.detach,
    )


def diagnostics(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Guard as it is against vanilla stripped of every measurement."""
    loaded = sessions(["vanilla", "guard"], overrides)
    stripped = patch.multiple("grpo_guard.train", accumulate=bare, ratio_metrics=lambda *_: {})
    unwatched = replace(loaded["vanilla"], look=away)
    rounds = timed(
        {"vanilla, bare": (unwatched, stripped), "guard": (loaded["guard"], nullcontext())},
        args.rounds,
    )
    console.print(table(rounds))
    for name, session in loaded.items():
        trajectory, _ = probe(session)
        console.print(
            f"{name}: {trajectory.x.nbytes // len(trajectory.x)} bytes of latents kept per image, no more"
        )


def objectives(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Iterations of some objectives."""
    loaded = sessions(args.objectives, overrides)
    console.print(
        table(
            timed({name: (session, nullcontext()) for name, session in loaded.items()}, args.rounds)
        )
    )


def precision(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Largest absolute error over 16 rows, against float64, at D = 65536 and s = 0.2."""
    shown = Table("rms(d)", "closed form", "difference of log-probabilities", "clip range")
    for size in (1e-2, 1e-3, 1e-4):
        shown.add_row(f"{size:.0e}", *(f"{error:.1e}" for error in errors(size)), "2.0e-06")
    console.print(shown)


def errors(size: float, std: float = 0.2, dimensions: int = 65_536) -> tuple[float, float]:
    """Of log r_norm in float32: (closed form, subtraction)."""
    eps, old, change = torch.randn(3, 16, dimensions, generator=torch.Generator().manual_seed(0))
    new, s = old + size * change, torch.full((16,), std)
    x_next = advance(Step(mean=old, std=s, gain=s), eps)
    exact = (eps.double() * (new.double() - old.double())).mean(1)
    closed = log_ratio_norm(drift(Step(mean=new, std=s, gain=s), x_next, eps))
    before, after = (-(x_next - mean).square().mean(1) / (2 * s.square()) for mean in (old, new))
    subtracted = s * (after - before + (new - old).square().mean(1) / (2 * s.square()))
    return float((closed - exact).abs().max()), float((subtracted - exact).abs().max())


def rewards(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """The pace of some rewards."""
    console.print(pace.rewards(args.rewards, args.images, args.rounds))


def asynchronous(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Iterations that wait for their rewards, and such that score beside the rollout."""
    after, beside = (
        sessions(["guard"], [*overrides, f"asynchronous={told}"])["guard"]
        for told in ("false", "true")
    )
    clocked = pace.Clocked(after.score)
    variants = {"after": replace(after, score=clocked), "beside": beside}
    rounds = timed(
        {name: (session, nullcontext()) for name, session in variants.items()}, args.rounds
    )
    console.print(table(rounds))
    seconds = pace.own(clocked.seconds, args.rounds)
    console.print(pace.told(pace.hidden(*rounds.values(), seconds), seconds))


def words(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Words in several fonts and sizes."""
    console.print(spelling(args.images))


def memory(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """One run's parts where overrides name it, else what was measured and the presets on their cards."""
    console.print(
        *(
            [footprint.parts(overrides)]
            if overrides
            else [footprint.compared(), footprint.presets()]
        )
    )
    console.print(
        *([footprint.beside({"here": [*footprint.SHORT, *overrides]})] if args.measure else [])
    )


def scale(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """What is measured here, then what is predicted of clusters."""
    console.print(*scaling.measured(args.strategies, args.rounds, overrides))
    console.print(scaling.exchanges(args.strategies), scaling.largest(args.strategies))


def pace_of_training(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Iterations here, then, unless overrides name a run, the recipes on paper."""
    console.print(throughput.measured(overrides, args.rounds))
    console.print(*([] if overrides else [throughput.on_paper()]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = {
        "objectives": objectives,
        "diagnostics": diagnostics,
        "precision": precision,
        "rewards": rewards,
        "asynchronous": asynchronous,
        "spelling": words,
        "memory": memory,
        "scaling": scale,
        "throughput": pace_of_training,
    }
    parser.add_argument("what", choices=verbs)
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="counted iterations of each variant, after one warm-up",
    )
    parser.add_argument(
        "--objectives", nargs="+", default=["vanilla", "guard"], help="names under conf/clipping"
    )
    parser.add_argument(
        "--rewards", nargs="+", default=list(pace.EMBEDDED), help="names under conf/reward"
    )
    parser.add_argument(
        "--strategies",
        nargs="+",
        choices=scaling.STRATEGIES,
        default=list(scaling.STRATEGIES),
        help="of scaling",
    )
    parser.add_argument(
        "--images", type=int, default=64, help="scored by each reward, or with a word of each font"
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="run what memory predicts of overrides, random weights",
    )
    args, overrides = parser.parse_known_args()
    try:
        verbs[args.what](args, overrides)
    except cli.MISTAKES as error:
        cli.fail(2, cli.explain(error))


if __name__ == "__main__":
    main()
