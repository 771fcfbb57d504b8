"""The tables of `bench.py scaling`.

The module is also the program of the processes that are measured:
`python -m grpo_guard.command.benches.scaling FILE OVERRIDES...` writes its figures into FILE.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from rich.progress import track
from rich.table import Table

from grpo_guard.command.benches.memory import (
    GIB,
    RECIPES,
    TRAINED,
    checkpoint_folder,
    compose_experiment,
)
from grpo_guard.console import cli
from grpo_guard.console.launch import run_processes
from grpo_guard.cost.memory import Memory, predict_memory
from grpo_guard.cost.random_weights import META, Untrained
from grpo_guard.cost.traffic import (
    TrafficCounter,
    count_calls,
    count_sent_bytes,
    measure_policy,
    predict_traffic,
)
from grpo_guard.parallel.costs import Traffic
from grpo_guard.schema import RunError
from grpo_guard.session import prepare
from grpo_guard.strategy.zero import Zero
from grpo_guard.train import iterate

MEASURED_RUN = [
    "reward=pickscore",  # it hardly ever scores two pictures alike: all rows go backward
    "watch=none",
    "data.repeats=8",
    "updates=2",
    "microbatch=8",
    "steps=6",
    "asynchronous=false",
]
"""Overrides of the runs that are measured here."""
TIMED = 2
"""Iterations that a process times, after one to warm up and one whose messages are counted."""
CLUSTERS = (8, 64)
"""Numbers of GPUs of the predictions."""
LARGE_RUN = ["preset=gpu_8x80gb", "microbatch=9", "backbone.dtype=bfloat16", "eval.keep_gold=false"]
"""Overrides of the predictions."""
CARD_SIZES = (24, 80)
"""GiB of the cards that the largest model is predicted for."""
USABLE_SHARE = 0.9
"""Share of a card that predicted bytes may fill; the rest is for what is not predicted."""
GPUS_PER_MACHINE = 8
DEPTHS = (2, 4)
"""Layers of the two models from which the memory of deeper ones is extrapolated."""
FLUX = "black-forest-labs/FLUX.1-dev"
UNLIMITED_STAGE3 = (
    "param_persistence_threshold",
    "max_live_parameters",
    "max_reuse_distance",
    "prefetch_bucket_size",
)
"""DeepSpeed's settings that let stage 3 keep small parameters whole."""


def measure_strategies(
    strategies: Sequence[str], rounds: int, overrides: Sequence[str]
) -> tuple[Table, Table]:
    """Run the shipped model in one process, and in two with twice the images.

    Returns the tables of exchanged bytes and of seconds.
    """
    traffic = Table("strategy", "operation", "predicted MB", "counted MB", "ratio")
    seconds = Table("strategy", "1 process s", "2 processes s", "efficiency")
    for strategy in track(strategies, "measuring"):
        pairs = [
            [run_strategy(strategy, processes, overrides) for processes in (1, 2)]
            for _ in range(rounds)
        ]
        for row in compare_traffic(pairs[0][1]):
            traffic.add_row(strategy, *row)
        times = [(one["seconds"], two["seconds"]) for one, two in pairs]
        seconds.add_row(strategy, *describe_efficiency(times))
    return traffic, seconds


def run_strategy(strategy: str, processes: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Run `main` below in some processes with four prompts each; returns what it writes."""
    settings = [
        *strategy_overrides(strategy, processes, 1),
        "strategy.threads=1",
        *MEASURED_RUN,
        f"data.prompts={4 * processes}",
        *overrides,
    ]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "grpo_guard.command.benches.scaling", str(file), *settings]
        code = run_processes(command, processes)
        if code:
            raise RunError(
                f"strategy={strategy} with {processes} processes ended with code {code};"
                " the lines above say why"
            )
        figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return figures


def compare_traffic(figures: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield the cells of each operation: predicted and counted bytes."""
    for kind, predicted in figures["predicted"].items():
        counted = figures["counted"].get(kind, 0)
        yield kind, f"{predicted / 1e6:.2f}", f"{counted / 1e6:.2f}", f"{predicted / counted:.3f}"


def describe_efficiency(pairs: Sequence[tuple[float, float]]) -> tuple[str, str, str]:
    """Return median seconds of one and two processes, and of their ratio, pair by pair."""
    ratios = [one / two for one, two in pairs]
    one, two = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    efficiency = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return f"{one:.2f}", f"{two:.2f}", efficiency


def predict_exchanges(strategies: Sequence[str]) -> Table:
    """Predict what each GPU sends in an iteration of the recipes, and what leaves a machine."""
    columns = [f"GB per GPU, {count} GPUs" for count in CLUSTERS]
    machine = f"GB per machine, {CLUSTERS[-1]} GPUs"
    table = Table("backbone", "trained", "strategy", *columns, machine)
    for backbone, recipe in RECIPES.items():
        for trained, overrides in TRAINED.items():
            settings = [f"experiment={recipe}", *LARGE_RUN, *overrides]
            for strategy, sent in predict_sent_bytes(settings, strategies):
                cells = [format_number(x / 1e9) for x in sent]
                table.add_row(backbone, trained, strategy, *cells)
    return table


def predict_sent_bytes(
    settings: Sequence[str], strategies: Sequence[str]
) -> Iterator[tuple[str, list[float]]]:
    """Yield each strategy with the bytes per GPU of each cluster, and per machine of the last."""
    model = Untrained(recipe=compose_experiment(settings).backbone).load(META)
    sizes = measure_policy(model.policy, model.dtype)
    for strategy in strategies:
        traffics = []
        for count in CLUSTERS:
            exp = compose_experiment([*settings, *strategy_overrides(strategy, count)])
            traffics.append(exp.strategy.count_traffic(sizes, count_calls(exp)))
        sent = [count_sent_bytes(traffic) for traffic in traffics]
        yield strategy, [*sent, count_leaving_bytes(strategy, traffics[-1])]


def format_number(x: float) -> str:
    """Write three digits of a number, or all digits of a larger one."""
    return f"{x:,.0f}" if x >= 1000 else f"{x:.3g}"


def count_leaving_bytes(strategy: str, traffic: Traffic) -> float:
    """Count the bytes that leave a machine.

    A ring through all GPUs leaves each machine once. With hsdp, shards stay within a machine, and
    each of its GPUs has a ring of its own among the replicas.
    """
    if strategy != "hsdp":
        return count_sent_bytes(traffic)
    between = {message: size for message, size in traffic.items() if message.kind == "all-reduce"}
    return GPUS_PER_MACHINE * count_sent_bytes(between)


def strategy_overrides(strategy: str, count: int, machine: int = GPUS_PER_MACHINE) -> list[str]:
    """Return overrides for a strategy of `count` processes, `machine` of them on each machine."""
    name, _, reduce = strategy.partition("-")
    overrides = [f"strategy={name}", f"strategy.processes={count}"]
    if name == "hsdp":
        overrides.append(f"strategy.replicas={count // machine}")
    if reduce:
        overrides.append(f"strategy.reduce={reduce}")
    return overrides


def predict_largest_models(strategies: Sequence[str]) -> Table:
    """Predict how many billion parameters of FLUX.1-dev's width fit a card."""
    columns = [f"{card} GB, {count} GPUs" for card in CARD_SIZES for count in CLUSTERS]
    table = Table("trained", "strategy", *columns)
    for trained, overrides in TRAINED.items():
        for strategy in track(strategies, f"predicting, {trained}"):
            models = [
                predict_depths([*overrides, *strategy_overrides(strategy, count)])
                for count in CLUSTERS
            ]
            largest = [
                largest_that_fits(*model, card * USABLE_SHARE * GIB)
                for card in CARD_SIZES
                for model in models
            ]
            table.add_row(trained, strategy, *(f"{x / 1e9:.3g}" for x in largest))
    return table


def predict_depths(overrides: Sequence[str]) -> tuple[list[int], list[Memory]]:
    """Return the parameters and the memory of FLUX.1-dev with each of `DEPTHS`."""
    counts, memories = [], []
    for depth in DEPTHS:
        with checkpoint_folder(FLUX, num_layers=depth, num_single_layers=2 * depth) as folder:
            recipe = [f"experiment={RECIPES['flux_dev']}", *LARGE_RUN, f"backbone.model={folder}"]
            exp = compose_experiment([*recipe, *overrides])
            transformer = Untrained(recipe=exp.backbone).load(META).pipe.transformer
            counts.append(sum(p.numel() for p in transformer.parameters()))
            memories.append(predict_memory(exp))
    return counts, memories


def largest_that_fits(counts: Sequence[int], memories: Sequence[Memory], size: float) -> float:
    """Return the parameters with which the first phase fills `size` bytes.

    What a phase holds is linear in the depth, so two models determine it.
    """
    shallow, deep = (memory.totals for memory in memories)
    slopes = {phase: (deep[phase] - shallow[phase]) / (counts[1] - counts[0]) for phase in shallow}
    limits = [
        counts[0] + (size - shallow[phase]) / slope for phase, slope in slopes.items() if slope > 0
    ]
    return max(0.0, min(limits))


def main() -> None:
    """Run some iterations; the first process writes seconds, predicted and counted bytes."""
    file, *overrides = sys.argv[1:]
    cli.hide_progress_bars()
    exp = compose_experiment(overrides)
    with patch.object(Zero, "config", disable_stage3_caches(Zero.config)):
        session = prepare(exp)
    session, _ = iterate(session, 0)
    with TrafficCounter() as counter:
        session, _ = iterate(session, 1)
    start = time.perf_counter()
    for iteration in range(TIMED):
        session, _ = iterate(session, 2 + iteration)
    seconds = (time.perf_counter() - start) / TIMED
    figures = {
        "seconds": seconds,
        "predicted": bytes_by_kind(predict_traffic(exp)),
        "counted": bytes_by_kind(counter.traffic),
    }
    if session.ranks.is_first:
        Path(file).write_text(json.dumps(figures), encoding="utf-8")


def disable_stage3_caches(config: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Make DeepSpeed keep no parameter whole between its uses, as it does with large policies."""

    def configure(*args: Any) -> dict[str, Any]:
        settings = config(*args)
        limits = {f"stage3_{key}": 0 for key in UNLIMITED_STAGE3}
        return settings | {"zero_optimization": settings["zero_optimization"] | limits}

    return configure


def bytes_by_kind(traffic: Traffic) -> dict[str, int]:
    """Return the bytes of each operation among several processes."""
    return {message.kind: size for message, size in traffic.items() if message.processes > 1}


if __name__ == "__main__":
    main()
