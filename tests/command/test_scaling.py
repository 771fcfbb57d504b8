"""Traffic and the largest model, predicted from sizes alone; tests/strategy counts real traffic."""

import pytest

from grpo_guard.command.benches import scaling
from grpo_guard.command.benches.memory import compose_experiment
from grpo_guard.command.benches.scaling import (
    count_leaving_bytes,
    describe_efficiency,
    largest_that_fits,
    strategy_overrides,
)
from grpo_guard.cost.memory import Memory
from grpo_guard.cost.traffic import count_calls, count_sent_bytes, predict_traffic
from grpo_guard.parallel.costs import Message, PolicyCalls, PolicySizes

EXAMPLE = [
    "reward=statistics",
    "data.prompts=4",
    "data.repeats=8",
    "microbatch=4",
    "steps=4",
    "steps_per_sample=null",
    "updates=2",
]
SMALLEST = [
    "strategy.threads=1",
    "data.prompts=1",
    "data.repeats=4",
    "microbatch=2",
    "steps=2",
    "eval.prompts=2",
    "eval.pictures=1",
]
SIZES = PolicySizes(blocks=600, rest=40, stored=1280, trained=1000)
CALLS = PolicyCalls(forwards=10, microbatches=6, updates=2)


def compose_example(strategy, count, *overrides):
    return compose_experiment([*EXAMPLE, *strategy_overrides(strategy, count), *overrides])


def test_a_ring_passes_every_byte_except_a_processs_own():
    gather = {Message(kind="all-gather", processes=4): 100}
    both = {
        Message(kind="all-reduce", processes=4): 100,
        Message(kind="reduce-scatter", processes=2): 10,
    }
    assert count_sent_bytes(gather) == 75
    assert count_sent_bytes(both) == 155
    assert count_sent_bytes({Message(kind="all-reduce", processes=1): 100}) == 0


def test_an_iteration_is_counted_in_calls():
    calls = count_calls(compose_example("ddp", 2))
    assert (calls.forwards, calls.microbatches, calls.updates) == (4 * 4, 2 * 6, 2)
    replayed = count_calls(compose_example("ddp", 2, "old_policy=replay"))
    assert (replayed.forwards, replayed.microbatches) == (16 + 12, 12)
    compared = count_calls(compose_example("ddp", 2, "kl=x", "backbone=sd3_tiny_lora"))
    assert (compared.forwards, compared.microbatches) == (16 + 12, 12)


def test_a_reference_that_is_a_copy_exchanges_nothing():
    assert count_calls(compose_example("fsdp", 2, "kl=x")).forwards == 16


@pytest.mark.parametrize(
    ("strategy", "count", "expected"),
    [
        ("ddp", 4, {("all-reduce", 4): 2 * 1000}),
        ("zero1", 4, {("all-reduce", 4): 2 * 1000, ("all-gather", 4): 2 * 1000}),
        ("zero2", 4, {("all-reduce", 4): 6 * 1000, ("all-gather", 4): 2 * 1000}),
        ("zero3", 4, {("all-gather", 4): 22 * 1280, ("reduce-scatter", 4): 6 * 1000}),
        ("fsdp", 4, {("all-gather", 4): 22 * 600 + 16 * 40, ("reduce-scatter", 4): 2 * 1000}),
        ("fsdp-microbatch", 4, {("all-gather", 4): 13840, ("reduce-scatter", 4): 6 * 1000}),
        (
            "hsdp",
            16,
            {("all-gather", 8): 13840, ("reduce-scatter", 8): 2000, ("all-reduce", 2): 250},
        ),
    ],
)
def test_traffic_of_a_strategy(strategy, count, expected):
    exp = compose_example(strategy, count, "microbatch=1")
    traffic = exp.strategy.count_traffic(SIZES, CALLS)
    assert {tuple(message): size for message, size in traffic.items()} == expected


def test_one_process_exchanges_nothing():
    assert predict_traffic(compose_experiment(EXAMPLE)) == {}


def test_bytes_that_leave_a_machine():
    """A ring of all GPUs leaves a machine once, the rings of its 8 GPUs' replicas once each."""
    ring = {Message(kind="all-gather", processes=16): 160}
    replicas = {Message(kind="all-reduce", processes=2): 10}
    assert count_leaving_bytes("fsdp", ring) == count_sent_bytes(ring) == 150
    within = {Message(kind="all-gather", processes=8): 80}
    assert count_leaving_bytes("hsdp", within | replicas) == 8 * 10


def test_the_largest_model_fills_the_first_phase():
    def memory(parameters):
        return Memory(
            held={"policy": 2 * parameters},
            phases={"a": {"x": parameters}, "b": {"y": 500}, "c": {}},
            state=0,
        )

    counts = [100, 200]
    memories = [memory(count) for count in counts]
    assert largest_that_fits(counts, memories, 3000) == pytest.approx(1000)  # a: 3 n
    assert largest_that_fits(counts, memories, 1200) == pytest.approx(350)  # b: 2 n + 500
    assert largest_that_fits(counts, memories, 400) == 0


def test_deeper_models_are_larger(monkeypatch):
    experiments = []

    def predict_memory(exp):
        experiments.append(exp)
        return Memory(held={}, phases={}, state=0)

    monkeypatch.setattr(scaling, "predict_memory", predict_memory)
    counts, _ = scaling.predict_depths(strategy_overrides("fsdp", 8))
    assert counts[0] < counts[1] < 2 * counts[0]
    assert all(exp.strategy.processes == 8 for exp in experiments)


def test_efficiency_is_taken_pair_by_pair():
    cells = describe_efficiency([(1.0, 2.0), (3.0, 4.0), (2.0, 2.0)])
    assert cells == ("2.00", "2.00", "0.75 (0.50 to 1.00)")


def test_a_process_starts_from_any_folder_and_writes_its_figures(monkeypatch, tmp_path):
    """A process by itself writes seconds and exchanges nothing."""
    monkeypatch.chdir(tmp_path)
    figures = scaling.run_strategy("ddp", 1, [*EXAMPLE, *SMALLEST])
    assert figures["seconds"] > 0
    assert figures["counted"] == figures["predicted"] == {}
