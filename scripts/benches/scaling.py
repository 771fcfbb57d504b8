"""The tables of `bench.py scaling`; as a program, a process of what they measure: scaling.py FILE overrides..."""

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

import torch
from rich.progress import track
from rich.table import Table

from benches.memory import GIB, RECIPES, TRAINED, composed, configured
from grpo_guard.cost import memory, traffic
from grpo_guard.cost.memory import Memory
from grpo_guard.cost.random_weights import Untrained
from grpo_guard.cost.traffic import Traffic, Wire, calls, exchanged, sent, sizes
from grpo_guard.session import prepare
from grpo_guard.strategy.zero import Zero
from grpo_guard.train import iterate
from grpo_guard.types import RunError
from lib import cli
from lib.launch import spread

STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp", "fsdp-microbatch", "hsdp")
SMALL = [
    "reward=statistics",
    "watch=none",
    "data.repeats=8",
    "updates=2",
    "microbatch=8",
    "steps=6",
    "asynchronous=false",
]
TIMED = 2  # iterations of a process, after one that warms up and one that is listened to
CLUSTERS = (8, 64)
LARGE = ["preset=gpu_8x80gb", "microbatch=9", "backbone.dtype=bfloat16", "eval.keep_gold=false"]
CARDS = (24, 80)  # GiB
ROOM = 0.9  # of a card, for what is predicted
MACHINE = 8  # GPUs
DEPTHS = (2, 4)
FLUX = "black-forest-labs/FLUX.1-dev"
META = torch.device("meta")


def measured(strategies: Sequence[str], rounds: int, overrides: Sequence[str]) -> Iterator[Table]:
    """Iterations of the embedded model by one process and by two that share twice as much, strategy by strategy."""
    listened = Table("strategy", "operation", "predicted MB", "counted MB", "ratio")
    weak = Table("strategy", "1 process s", "2 processes s", "efficiency")
    for strategy in track(strategies, "measuring"):
        found = [
            [worked(strategy, processes, overrides) for processes in (1, 2)] for _ in range(rounds)
        ]
        for row in compared(found[0][1]):
            listened.add_row(strategy, *row)
        weak.add_row(strategy, *efficiency([[one["seconds"] for one in pair] for pair in found]))
    yield from (listened, weak)


def worked(strategy: str, processes: int, overrides: Sequence[str]) -> dict[str, Any]:
    """What a process of so many tells; each has four prompts."""
    given = [*spanning(strategy, processes, 1), "strategy.threads=1"]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "told.json"
        command = [
            sys.executable,
            __file__,
            str(file),
            *given,
            *SMALL,
            f"data.prompts={4 * processes}",
            *overrides,
        ]
        if code := spread(command, processes):
            raise RunError(f"strategy={strategy} with {processes} processes ended with code {code}")
        told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return told


def compared(told: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """What was predicted and what was counted, operation by operation."""
    for kind, predicted in told["predicted"].items():
        counted = told["counted"].get(kind, 0)
        yield kind, f"{predicted / 1e6:.2f}", f"{counted / 1e6:.2f}", f"{predicted / counted:.3f}"


def efficiency(pairs: Sequence[Sequence[float]]) -> tuple[str, str, str]:
    """Medians of seconds, and of their paired ratios."""
    ratios = [one / two for one, two in pairs]
    one, two = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    return (
        f"{one:.2f}",
        f"{two:.2f}",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
    )


def exchanges(strategies: Sequence[str]) -> Table:
    """What each GPU sends in an iteration of the recipes, and what leaves each of several machines, on paper."""
    columns = [f"GB a GPU, {count} GPUs" for count in CLUSTERS]
    shown = Table("backbone", "trained", "strategy", *columns, f"GB a machine, {CLUSTERS[-1]} GPUs")
    for backbone, recipe in RECIPES.items():
        for trained, overrides in TRAINED.items():
            settings = [f"experiment={recipe}", *LARGE, *overrides]
            model = Untrained(recipe=composed(settings).backbone).load(META)
            size = sizes(model.policy, model.dtype)
            for strategy in strategies:
                runs = [composed([*settings, *spanning(strategy, count)]) for count in CLUSTERS]
                found = [exchanged(exp.strategy, size, calls(exp)) for exp in runs]
                given = [*map(sent, found), leaving(strategy, found[-1])]
                shown.add_row(backbone, trained, strategy, *(number(x / 1e9) for x in given))
    return shown


def number(x: float) -> str:
    """A number in three digits, or more where it has them."""
    return f"{x:,.0f}" if x >= 1000 else f"{x:.3g}"


def leaving(strategy: str, found: Traffic) -> float:
    """Bytes that leave a machine: a ring through all GPUs does so once, rings among replicas once for each GPU."""
    if strategy != "hsdp":
        return sent(found)
    return MACHINE * sent(
        {message: size for message, size in found.items() if message.kind == "all-reduce"}
    )


def spanning(strategy: str, count: int, machine: int = MACHINE) -> list[str]:
    """A strategy, and perhaps after which microbatches FSDP reduces, of so many processes, some on each machine."""
    name, _, reduce = strategy.partition("-")
    replicas = [f"strategy.replicas={count // machine}"] if name == "hsdp" else []
    reduced = [f"strategy.reduce={reduce}"] if reduce else []
    return [f"strategy={name}", f"strategy.processes={count}", *replicas, *reduced]


def largest(strategies: Sequence[str]) -> Table:
    """The largest transformer of FLUX.1-dev's width for a card, in billions of parameters, on paper."""
    columns = [f"{card} GB, {count} GPUs" for card in CARDS for count in CLUSTERS]
    shown = Table("trained", "strategy", *columns)
    for trained, overrides in TRAINED.items():
        for strategy in track(strategies, f"predicting, {trained}"):
            lines = [growth([*overrides, *spanning(strategy, count)]) for count in CLUSTERS]
            found = [room(*line, card * ROOM * GIB) for card in CARDS for line in lines]
            shown.add_row(trained, strategy, *(f"{x / 1e9:.3g}" for x in found))
    return shown


def growth(overrides: Sequence[str]) -> tuple[list[int], list[Memory]]:
    """Parameters and memory of two depths of FLUX.1-dev."""
    counts, found = [], []
    for depth in DEPTHS:
        with configured(FLUX, num_layers=depth, num_single_layers=2 * depth) as folder:
            exp = composed(
                [
                    f"experiment={RECIPES['flux_dev']}",
                    *LARGE,
                    f"backbone.model={folder}",
                    *overrides,
                ]
            )
            transformer = Untrained(recipe=exp.backbone).load(META).pipe.transformer
            counts.append(sum(p.numel() for p in transformer.parameters()))
            found.append(memory.predict(exp))
    return counts, found


def room(counts: Sequence[int], found: Sequence[Memory], size: float) -> float:
    """Parameters with which the first phase fills so many bytes: what every phase holds grows in a line with them."""
    before, after = (memory.totals for memory in found)
    slopes = {phase: (after[phase] - before[phase]) / (counts[1] - counts[0]) for phase in before}
    return max(
        0.0,
        min(
            counts[0] + (size - before[phase]) / slope
            for phase, slope in slopes.items()
            if slope > 0
        ),
    )


def main() -> None:
    """Go through some iterations and, as the first process, write down what was exchanged, and seconds."""
    file, *overrides = sys.argv[1:]
    cli.still()
    exp = composed(overrides)
    with patch.object(Zero, "config", unkept(Zero.config)):
        session = prepare(exp)
    session, _ = iterate(session, 0)
    with Wire() as wire:
        session, _ = iterate(session, 1)
    start = time.perf_counter()
    for iteration in range(TIMED):
        session, _ = iterate(session, 2 + iteration)
    seconds = (time.perf_counter() - start) / TIMED
    told = {
        "seconds": seconds,
        "predicted": by_kind(traffic.predict(exp)),
        "counted": by_kind(wire.traffic),
    }
    if session.ranks.is_first:
        Path(file).write_text(json.dumps(told), encoding="utf-8")


def unkept(config: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """DeepSpeed's configuration with nothing kept whole between its uses, as where a policy is large."""
    limits = (
        "param_persistence_threshold",
        "max_live_parameters",
        "max_reuse_distance",
        "prefetch_bucket_size",
    )

    def changed(*given: Any) -> dict[str, Any]:
        found = config(*given)
        return found | {
            "zero_optimization": found["zero_optimization"] | {f"stage3_{key}": 0 for key in limits}
        }

    return changed


def by_kind(found: Traffic) -> dict[str, int]:
    """Bytes of every operation among several processes."""
    return {message.kind: size for message, size in found.items() if message.among > 1}


if __name__ == "__main__":
    main()
