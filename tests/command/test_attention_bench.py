"""The benchmark of attention: its shapes are the policy's, and it times what the device can do."""

import pytest
import torch.nn.functional as F

from grpo_guard.command.benches import attention
from grpo_guard.command.benches.memory import TINY, compose_experiment
from grpo_guard.experiment import Experiment
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
    assert seconds["cudnn"] is None
    for name in (attention.CHOSEN, "flash", "math"):
        assert len(seconds[name]) == 2
        assert all(row.forward > 0 and row.both > 0 for row in seconds[name])
    table = attention.make_table(seconds)
    cells = list(table.columns[1].cells)
    assert cells[list(seconds).index("cudnn")] == "cannot compute this"
    assert next(iter(table.columns[2].cells)) == "1.000 (1.000 to 1.000)"


def test_calls_count_as_often_as_the_policy_makes_them(monkeypatch):
    monkeypatch.setattr(
        attention, "_time_repeats", lambda tensors, backward: 5.0 if backward else 2
    )
    shape = ((1, 1, 2, 4), (1, 1, 2, 4))
    assert vars(attention.time_calls({shape: 3}, {shape: ()})) == {"forward": 6, "both": 15}
