"""The tables of `bench.py kernels`: what the device computes in an iteration, by kind and name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from grpo_guard.command.benches.rewards import synchronize
from grpo_guard.command.benches.throughput import prepare_untrained
from grpo_guard.schema import record
from grpo_guard.train import iterate

SHOWN = 15
"""Kernels that have a row of their own."""
LONGEST_NAME = 60
"""Characters of a kernel's name that are shown; names of templates have hundreds."""
REST = "the rest"
KINDS: Mapping[str, str] = {
    "compiled": r"triton_|cpp_fused|compiledfxgraph",
    "attention": r"flash|fmha|attention|sdpa",
    "convolutions": r"conv|fprop|dgrad|wgrad|nchw|nhwc",
    "matrix products": r"gemm|nvjet|cutlass|cublas|addmm|\bmm\b|bmm|matmul|linear",
    "exchanges": r"nccl|c10d|gloo",
    "optimizer": r"adam|foreach|multi_?tensor",
    "norms and sums": r"norm|reduce|softmax|aten::(sum|mean)",
    "copies": r"memcpy|memset|copy|\bcat|stack|index|gather",
    "elementwise": r"elementwise|aten::(add|sub|mul|div|pow|sqrt|exp|lerp|fill|zero|gelu|silu)",
}
"""Kinds of kernels, and what their names hold; the first kind that fits counts."""


@record
class Kernel:
    """A kernel, or on the CPU an operation of torch."""

    name: str
    """Its name, as torch's profiler gives it."""
    calls: int
    """How often it ran."""
    seconds: float
    """Its own time in all calls, without what it called."""


def profile_iteration(overrides: Sequence[str]) -> list[Kernel]:
    """Run an iteration with random weights, and another one under torch's profiler.

    The first one compiles, chooses kernels and fills the allocator.
    """
    session = prepare_untrained(overrides)
    session, _ = iterate(session, 0)
    device = session.ranks.device
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities = [ProfilerActivity.CUDA]
    synchronize(device)
    with profile(activities=activities, acc_events=True) as watched:
        iterate(session, 1)
        synchronize(device)
    return read_kernels(watched.key_averages(), on_gpu=device.type == "cuda")


def read_kernels(events: Sequence[Any], *, on_gpu: bool) -> list[Kernel]:
    """Return what took time on the device, the longest first."""
    field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    kernels = [
        Kernel(name=event.key, calls=event.count, seconds=getattr(event, field) / 1e6)
        for event in events
    ]
    return sorted((k for k in kernels if k.seconds > 0), key=lambda k: -k.seconds)


def name_kind(kernel: str) -> str:
    """Return the kind of a kernel."""
    fitting = (kind for kind, pattern in KINDS.items() if re.search(pattern, kernel.lower()))
    return next(fitting, REST)


def make_kind_table(kernels: Sequence[Kernel]) -> Table:
    """Show the seconds of each kind, and its share of all."""
    table = Table("kind", "s", "share", "calls")
    whole = sum(kernel.seconds for kernel in kernels)
    by_kind: dict[str, list[Kernel]] = {kind: [] for kind in (*KINDS, REST)}
    for kernel in kernels:
        by_kind[name_kind(kernel.name)].append(kernel)
    for kind, members in sorted(by_kind.items(), key=lambda item: -_sum_seconds(item[1])):
        if members:
            seconds = _sum_seconds(members)
            calls = sum(kernel.calls for kernel in members)
            table.add_row(kind, f"{seconds:.3g}", f"{seconds / whole:.1%}", f"{calls:,}")
    return table


def make_kernel_table(kernels: Sequence[Kernel]) -> Table:
    """Show the kernels that take most of the time."""
    table = Table("kernel", "kind", "s", "share", "calls")
    whole = sum(kernel.seconds for kernel in kernels)
    for kernel in kernels[:SHOWN]:
        table.add_row(
            kernel.name[:LONGEST_NAME],
            name_kind(kernel.name),
            f"{kernel.seconds:.3g}",
            f"{kernel.seconds / whole:.1%}",
            f"{kernel.calls:,}",
        )
    return table


def _sum_seconds(kernels: Sequence[Kernel]) -> float:
    return sum(kernel.seconds for kernel in kernels)
