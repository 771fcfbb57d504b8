"""The table of `bench.py attention`: torch's kernels of attention at the shapes of a policy.

torch chooses a kernel for every call by itself. Its environment can change the choice, and this
table says whether that pays.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from grpo_guard.command.benches.iterations import describe_ratios
from grpo_guard.command.benches.memory import compose_experiment
from grpo_guard.command.benches.rewards import synchronize
from grpo_guard.cost.random_weights import META, Untrained, call_policy
from grpo_guard.experiment import Experiment
from grpo_guard.pipeline.recipe import PipelineRecipe
from grpo_guard.schema import record

CHOSEN = "torch's choice"
KERNELS: Mapping[str, SDPBackend | None] = {
    CHOSEN: None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
"""Kernels by name; None leaves the choice to torch."""
REPEATS = 3
"""Calls of each shape that are timed together."""
Shape = tuple[tuple[int, ...], tuple[int, ...]]
"""Rows, heads, tokens and width of a head: those of the queries, and those of keys and values."""


@record
class Seconds:
    """Seconds of all calls of one forward of the policy."""

    forward: float
    """Without gradients, as in a rollout."""
    both: float
    """Forward and backward, as in an update."""


class RecordShapes(TorchFunctionMode):
    """Counts the calls of attention by their shapes, while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter[Shape]()

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key"), args, strict=False)) | (kwargs or {})
            self.calls[tuple(named["query"].shape), tuple(named["key"].shape)] += 1
        return function(*args, **(kwargs or {}))


def count_shapes(exp: Experiment) -> Counter[Shape]:
    """Count the calls of attention in a forward of one microbatch, on tensors without storage."""
    recipe = replace(cast(PipelineRecipe, exp.backbone), dtype="float32", text_dtype="float32")
    model = Untrained(recipe=recipe).load(META)
    with RecordShapes() as record_shapes:
        call_policy(model, rows=exp.batch_sizes.microbatch)
    return record_shapes.calls


def compare_kernels(overrides: Sequence[str], rounds: int) -> dict[str, list[Seconds] | None]:
    """Time every kernel in turn; None stands for a kernel that cannot compute these calls."""
    exp = compose_experiment(overrides)
    device = exp.strategy.start().device
    dtype = getattr(torch, cast(PipelineRecipe, exp.backbone).dtype)
    shapes = count_shapes(exp)
    inputs = {shape: make_inputs(shape, dtype, device) for shape in shapes}
    able = [name for name in KERNELS if can_compute(name, inputs)]
    seconds: dict[str, list[Seconds]] = {name: [] for name in able}
    for i in track(range(rounds + 1), "timing"):
        for name in able:
            with use_kernel(name):
                spent = time_calls(shapes, inputs)
            if i > 0:  # the first round warms up
                seconds[name].append(spent)
    return {name: seconds.get(name) for name in KERNELS}


def make_inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Return random queries, keys and values (rows, heads, tokens, width)."""
    query, key = shape
    return tuple(
        torch.randn(size, dtype=dtype, device=device, requires_grad=True)
        for size in (query, key, key)
    )


def use_kernel(name: str) -> AbstractContextManager[object]:
    """Let attention be computed by this kernel alone."""
    kernel = KERNELS[name]
    return nullcontext() if kernel is None else sdpa_kernel(kernel)


def can_compute(name: str, inputs: Mapping[Shape, tuple[Tensor, ...]]) -> bool:
    """Say whether a kernel takes these inputs on their device."""
    try:
        with use_kernel(name):
            for tensors in inputs.values():
                F.scaled_dot_product_attention(*tensors)
    except torch.OutOfMemoryError:
        return False
    except RuntimeError as error:
        if "kernel" not in str(error).lower():
            raise
        return False
    return True


def time_calls(shapes: Mapping[Shape, int], inputs: Mapping[Shape, tuple[Tensor, ...]]) -> Seconds:
    """Time the calls of one forward, without and with a backward."""
    forward = both = 0.0
    for shape, count in shapes.items():
        with torch.no_grad():
            forward += count * _time_repeats(inputs[shape], backward=False)
        both += count * _time_repeats(inputs[shape], backward=True)
    return Seconds(forward=forward, both=both)


def _time_repeats(tensors: Sequence[Tensor], *, backward: bool) -> float:
    """Return the mean seconds of a call."""
    device = tensors[0].device
    synchronize(device)
    start = time.perf_counter()
    for _ in range(REPEATS):
        result = F.scaled_dot_product_attention(*tensors)
        if backward:
            torch.autograd.grad(result.sum(), tensors)
    synchronize(device)
    return (time.perf_counter() - start) / REPEATS


def make_table(seconds: Mapping[str, Sequence[Seconds] | None]) -> Table:
    """Make a table of median milliseconds, and of ratios to torch's choice, round by round."""
    table = Table("kernel", "forward, ms", "over torch's", "with backward, ms", "over torch's")
    chosen = seconds[CHOSEN] or ()
    for name, rows in seconds.items():
        if rows is None:
            table.add_row(name, "cannot compute this")
            continue
        pairs = list(zip(rows, chosen, strict=True))
        table.add_row(
            name,
            f"{1000 * statistics.median(row.forward for row in rows):.3g}",
            describe_ratios([own.forward / other.forward for own, other in pairs]),
            f"{1000 * statistics.median(row.both for row in rows):.3g}",
            describe_ratios([own.both / other.both for own, other in pairs]),
        )
    return table
