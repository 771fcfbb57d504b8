"""The benchmark of attention: its shapes are the policy's, and it times what the device can do."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from grpo_guard.command.benches import attention
from grpo_guard.command.benches.memory import TINY, compose_experiment
from grpo_guard.experiment import Experiment
from grpo_guard.schema import RunError
from grpo_guard.session import prepare
from grpo_guard.types import Condition


def call_once(exp: Experiment, rows: int) -> None:
    """Let the loaded policy, with its real weights, predict some rows."""
    session = prepare(exp)
    condition: Condition = session.model.encode(["a red circle"] * rows)
    x = condition.tokens.new_zeros(rows, *session.model.shape)
    session.policy(x, condition.tokens.new_zeros(rows), condition)


@pytest.mark.parametrize("overrides", [[], ["backbone.guidance=4.5"], ["backbone=flux_tiny"]])
def test_shapes_are_those_of_the_real_policy(overrides, monkeypatch):
    exp = compose_experiment([*TINY, *overrides])
    seen = []
    real = F.scaled_dot_product_attention

    def record(query, key, *args, **kwargs):
        seen.append((tuple(query.shape), tuple(key.shape)))
        return real(query, key, *args, **kwargs)

    counted = attention.count_shapes(exp)
    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    call_once(exp, exp.batch_sizes.microbatch)
    rows = {query[0] for query, _ in counted}
    assert rows
    assert {shape: seen.count(shape) for shape in seen if shape[0][0] in rows} == counted


def test_a_kernel_that_the_device_lacks_has_no_time():
    seconds = attention.compare_kernels([*TINY, "strategy.device=cpu"], rounds=2)
    assert "kernel" in seconds["cudnn"]
    for name in (attention.CHOSEN, "flash", "math"):
        assert len(seconds[name]) == 2
        assert all(row.forward > 0 and row.both > 0 for row in seconds[name])
    table = attention.make_table(seconds)
    cells = list(table.columns[1].cells)
    assert cells[list(seconds).index("cudnn")].startswith("cannot compute this (")
    assert next(iter(table.columns[2].cells)) == "1.000 (1.000 to 1.000)"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 81.00 GiB."),
        RuntimeError("cuDNN Frontend error: No execution plans support the graph."),
    ],
)
def test_a_kernel_that_fails_in_the_backward_leaves_the_others(monkeypatch, error):
    """On a GPU, a kernel may have memory for a forward alone."""
    using = []

    def time_repeats(tensors, *, backward):
        if backward and using[-1] == "math":
            raise error
        return 1.0

    def use_kernel(name):
        using.append(name)
        return nullcontext()

    monkeypatch.setattr(attention, "_time_repeats", time_repeats)
    monkeypatch.setattr(attention, "use_kernel", use_kernel)
    results = attention.compare_kernels([*TINY, "strategy.device=cpu"], rounds=2)
    assert results.pop("math") == str(error)
    assert all(len(seconds) == 2 for seconds in results.values())


def test_without_any_kernel_one_line_says_why():
    with pytest.raises(RunError, match=r"no kernel computes .* \(out of memory\)"):
        attention.make_table(dict.fromkeys(attention.KERNELS, "out of memory"))


def test_calls_count_as_often_as_the_policy_makes_them(monkeypatch):
    monkeypatch.setattr(
        attention, "_time_repeats", lambda tensors, backward: 5.0 if backward else 2
    )
    shape = ((1, 1, 2, 4), (1, 1, 2, 4))
    assert vars(attention.time_calls({shape: 3}, {shape: ()})) == {"forward": 6, "both": 15}
