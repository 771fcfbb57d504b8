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
from grpo_guard.messages import first_line
from grpo_guard.pipeline.recipe import PipelineRecipe
from grpo_guard.schema import RunError, record

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


def compare_kernels(overrides: Sequence[str], rounds: int) -> dict[str, list[Seconds] | str]:
    """Time every kernel in turn; a text says why a kernel cannot compute these calls."""
    exp = compose_experiment(overrides)
    device = exp.strategy.start().device
    dtype = getattr(torch, cast(PipelineRecipe, exp.backbone).dtype)
    shapes = count_shapes(exp)
    inputs = {shape: make_inputs(shape, dtype, device) for shape in shapes}
    results: dict[str, list[Seconds] | str] = {
        name: try_kernel(name, shapes, inputs) or [] for name in KERNELS
    }
    timed = {name: rows for name, rows in results.items() if isinstance(rows, list)}
    for _ in track(range(rounds), "timing"):
        for name, rows in timed.items():
            with use_kernel(name):
                rows.append(time_calls(shapes, inputs))
    return results


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


def try_kernel(
    name: str, shapes: Mapping[Shape, int], inputs: Mapping[Shape, tuple[Tensor, ...]]
) -> str | None:
    """Let a kernel compute all calls once, with their backward; return why it cannot, if so.

    This also warms it up.
    """
    try:
        with use_kernel(name):
            time_calls(shapes, inputs)
    except RuntimeError as error:
        # It is not there, does not take these inputs, or needs more memory than is left. Each
        # library says so in words of its own.
        return first_line(error)
    return None


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


def make_table(results: Mapping[str, Sequence[Seconds] | str]) -> Table:
    """Make a table of median milliseconds, and of ratios to torch's choice, round by round.

    Raises RunError if torch's own choice cannot compute the calls.
    """
    table = Table("kernel", "forward, ms", "over torch's", "with backward, ms", "over torch's")
    chosen = results[CHOSEN]
    if isinstance(chosen, str):
        raise RunError(
            f"no kernel computes the attention of one microbatch ({chosen}); lower microbatch"
        )
    for name, rows in results.items():
        if isinstance(rows, str):
            table.add_row(name, f"cannot compute this ({rows})")
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
