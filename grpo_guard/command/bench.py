"""Measure or predict what training costs: python scripts/bench.py BENCHMARK [options] [overrides]

objectives    time iterations of several objectives; overrides are those of train.py
diagnostics   time Guard with all diagnostics against vanilla without any; also prints the bytes of
              latents that each image keeps
precision     error of RatioNorm in float32, in closed form and as a difference of log-probabilities
rewards       images per second of rewards; large published scorers get random weights
asynchronous  share of a reward's time that is hidden behind the rollout; overrides choose the
              reward, such as reward=ocr
spelling      share of words that OCR reads, by font and size
memory        peak bytes on a device: predicted and measured for small runs, predicted for the
              shipped presets. With overrides: predicted for that run, part by part; with --measure
              also measured here
scaling       for each strategy, what two processes exchange, predicted and counted, and their
              seconds against one process with half the images. Predicted: what SD3.5-M and
              FLUX.1-dev exchange on 8 and 64 GPUs, and the largest model that fits a card
throughput    images per second with random weights, operations per second and the share of the
              GPU's peak (MFU). Without overrides: of a small run, with the recipes' cost calculated

Variants are timed in turn, so that their ratios are fair on a machine whose speed drifts. Tables
show medians; ratios are taken round by round.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rich.console import Console

from grpo_guard.command.benches import (
    iterations,
    memory,
    precision,
    rewards,
    scaling,
    spelling,
    throughput,
)
from grpo_guard.console import cli
from grpo_guard.console.overrides import quote_override
from grpo_guard.probe import draw_probe

console = Console()


def run_objectives(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Time iterations of some objectives."""
    sessions = iterations.prepare_sessions(args.objectives, overrides)
    seconds = iterations.time_variants(iterations.as_variants(sessions), args.rounds)
    console.print(iterations.make_table(seconds))


def run_diagnostics(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Time Guard with all diagnostics against vanilla without any."""
    sessions = iterations.prepare_sessions(["vanilla", "guard"], overrides)
    variants = {
        "bare vanilla": iterations.strip_diagnostics(sessions["vanilla"]),
        **iterations.as_variants({"guard": sessions["guard"]}),
    }
    console.print(iterations.make_table(iterations.time_variants(variants, args.rounds)))
    for name, session in sessions.items():
        trajectory, _ = draw_probe(session, session.policy)
        size = trajectory.x.nbytes // len(trajectory.x)
        console.print(f"{name}: {size} bytes of latents are kept per image, and nothing else")


def run_precision(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Measure the error of RatioNorm."""
    console.print(precision.compare_precision())


def run_rewards(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Time some rewards."""
    console.print(rewards.time_rewards(args.rewards, args.images, args.rounds))


def run_asynchronous(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Time iterations that score after the rollout, and iterations that score during it."""
    after, during = (
        iterations.prepare_sessions(["guard"], [*overrides, f"asynchronous={setting}"])["guard"]
        for setting in ("false", "true")
    )
    timed = rewards.TimedScorer(after.score)
    variants = iterations.as_variants({"after": replace(after, score=timed), "during": during})
    seconds = iterations.time_variants(variants, args.rounds)
    console.print(iterations.make_table(seconds))
    scoring = rewards.sum_rounds(timed.seconds, args.rounds)
    shares = rewards.hidden_shares(seconds["after"], seconds["during"], scoring)
    console.print(rewards.describe_hidden(shares, scoring))


def run_spelling(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Read words in several fonts and sizes."""
    console.print(spelling.measure_spelling(args.images))


def run_memory(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Predict and measure memory: of the run that overrides name, or else of known runs."""
    if overrides:
        predicted = memory.predict_run(overrides)
        console.print(memory.describe_fit(predicted), soft_wrap=True)
        console.print(memory.make_part_table(predicted))
    else:
        console.print(memory.compare_known_runs())
        console.print(memory.make_preset_table())
    if args.measure:
        console.print(memory.compare_runs({"here": [*memory.NO_SCORERS, *overrides]}))


def run_scaling(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Measure strategies here, then predict them on clusters."""
    console.print(*scaling.measure_strategies(args.strategies, args.rounds, overrides))
    console.print(scaling.predict_exchanges(args.strategies))
    console.print(scaling.predict_largest_models(args.strategies))


def run_throughput(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Time iterations with random weights; without overrides, also calculate the recipes."""
    console.print(throughput.measure_throughput(overrides, args.rounds))
    if not overrides:
        console.print(throughput.calculate_recipes())


BENCHMARKS: Mapping[str, Callable[[argparse.Namespace, Sequence[str]], None]] = {
    "objectives": run_objectives,
    "diagnostics": run_diagnostics,
    "precision": run_precision,
    "rewards": run_rewards,
    "asynchronous": run_asynchronous,
    "spelling": run_spelling,
    "memory": run_memory,
    "scaling": run_scaling,
    "throughput": run_throughput,
}


def make_parser() -> argparse.ArgumentParser:
    """Make the command line; what it does not know are overrides of train.py."""
    parser = cli.make_parser(__doc__ or "", epilog="")
    parser.add_argument("benchmark", choices=BENCHMARKS, help="what to measure, as listed above")
    rounds = "timed iterations of each variant, after one to warm up"
    parser.add_argument("--rounds", type=int, default=5, help=rounds)
    parser.add_argument(
        "--objectives",
        nargs="+",
        default=["vanilla", "guard"],
        help="names under conf/clipping, for objectives",
    )
    parser.add_argument(
        "--rewards",
        nargs="+",
        default=list(rewards.EMBEDDED),
        help="names under conf/reward, for rewards",
    )
    parser.add_argument(
        "--strategies",
        nargs="+",
        choices=scaling.STRATEGIES,
        default=list(scaling.STRATEGIES),
        help="strategies, for scaling",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=64,
        help="images that each reward scores, or words of each font for spelling",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="also run what memory predicts, with random weights and without scorers",
    )
    return parser


def main() -> None:
    """Run a benchmark; exit with one line if a setting cannot be used."""
    args, overrides = make_parser().parse_known_args()
    with cli.exit_on_mistake():
        BENCHMARKS[args.benchmark](args, [quote_override(override) for override in overrides])


if __name__ == "__main__":
    main()
