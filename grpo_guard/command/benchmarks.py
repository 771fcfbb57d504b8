"""What scripts/bench.py does once its arguments are parsed: one function per benchmark."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rich.console import Console

from grpo_guard.command.benches import (
    attention,
    compiling,
    detector,
    gpu,
    gpu_plan,
    iterations,
    kernels,
    memory,
    pages,
    peers,
    precision,
    rewards,
    rounding,
    scaling,
    soak,
    spelling,
    throughput,
)
from grpo_guard.command.noise_floors import print_floors
from grpo_guard.cost.memory import predict_memory
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
        trajectory = draw_probe(session, session.policy).trajectory
        size = trajectory.x.nbytes // len(trajectory.x)
        console.print(f"{name}: {size} bytes of latents are kept per image, and nothing else")


def run_idle(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Time iterations with and without the backward of rows that have no advantage."""
    names = ("all rows backward", "rows with an advantage")
    first, second = (iterations.prepare_sessions(["guard"], overrides)["guard"] for _ in names)
    variants = {
        names[0]: iterations.go_backward_everywhere(first),
        **iterations.as_variants({names[1]: second}),
    }
    console.print(iterations.make_table(iterations.time_variants(variants, args.rounds)))


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
        exp = memory.compose_experiment(overrides)
        predicted = predict_memory(exp)
        console.print(memory.describe_fit(predicted), soft_wrap=True)
        console.print(memory.describe_states(predicted, exp.checkpoint), soft_wrap=True)
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


def run_attention(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Time torch's kernels of attention at the shapes of the policy."""
    console.print(attention.make_table(attention.compare_kernels(overrides, args.rounds)))


def run_kernels(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Profile an iteration with random weights."""
    profiled = kernels.profile_iteration(overrides)
    console.print(kernels.make_kind_table(profiled))
    console.print(kernels.make_kernel_table(profiled))


def run_detector(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Compare GenEval's detector on the device with the CPU."""
    console.print(detector.compare_devices(args.images))


def run_compile(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Count the CPU seconds of iterations with and without backbone.compile."""
    costs = compiling.measure_compiling(overrides, args.rounds)
    console.print(compiling.make_table(costs))
    console.print(compiling.describe_gain(costs))


def run_soak(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Train many small iterations, and print what grew."""
    console.print(soak.soak(args.iterations, overrides))


def run_rounding(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Compare ways to compute how far a policy has moved in half precision."""
    case = rounding.prepare_case(overrides)
    console.print(rounding.make_site_table(rounding.compare_sites(case)))
    console.print(rounding.make_step_table(rounding.compare_steps(case)))


def run_floor(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Measure the noise floor with random weights."""
    print_floors(throughput.prepare_untrained(overrides))


def run_gpu(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Try everything that needs a GPU, the most useful first; figures are written as they come."""
    device = gpu.require_gpu()
    console.print(device)
    checks = gpu_plan.plan(args.out)
    outcomes = gpu.run_plan(checks, args.out, args.minutes, device, gpu.run_command)
    console.print(gpu.make_table(checks, outcomes))


def run_peers(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Count the CPU seconds of this program and of the field's common loop."""
    console.print(peers.make_table(peers.compare_loops(overrides, args.rounds)))


def run_pages(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Time the page that compares many long runs."""
    console.print(pages.time_page(args.runs, args.iterations))


BENCHMARKS: Mapping[str, Callable[[argparse.Namespace, Sequence[str]], None]] = {
    "objectives": run_objectives,
    "diagnostics": run_diagnostics,
    "idle": run_idle,
    "precision": run_precision,
    "rewards": run_rewards,
    "asynchronous": run_asynchronous,
    "spelling": run_spelling,
    "memory": run_memory,
    "scaling": run_scaling,
    "throughput": run_throughput,
    "attention": run_attention,
    "kernels": run_kernels,
    "detector": run_detector,
    "compile": run_compile,
    "peers": run_peers,
    "soak": run_soak,
    "floor": run_floor,
    "rounding": run_rounding,
    "gpu": run_gpu,
    "pages": run_pages,
}
"""Functions that take the options, and overrides of train.py."""
