"""What is exchanged and what fits, from sizes alone; tests/strategy counts what really passes."""

from pathlib import Path

import pytest

from benches import scaling
from benches.scaling import composed, efficiency, leaving, room, spanning
from grpo_guard.cost.memory import Memory
from grpo_guard.cost.traffic import Calls, Message, Sizes, calls, exchanged, predict, sent

BATCH = [
    "data.prompts=4",
    "data.repeats=8",
    "microbatch=4",
    "steps=4",
    "steps_per_sample=null",
    "updates=2",
]
LEAST = [
    "strategy.threads=1",
    "data.prompts=1",
    "data.repeats=4",
    "microbatch=2",
    "steps=2",
    "eval.prompts=2",
    "eval.pictures=1",
]
EXAMPLE = ["reward=statistics", *BATCH]
SIZE = Sizes(blocks=600, rest=40, stored=1280, trained=1000)
CALLS = Calls(walks=10, replayed=6, updates=2)


def under(strategy, count, *overrides):
    return composed([*EXAMPLE, *spanning(strategy, count), *overrides])


def test_a_ring_passes_every_byte_but_ones_own():
    assert sent({Message(kind="all-gather", among=4): 100}) == 75
    assert (
        sent(
            {Message(kind="all-reduce", among=4): 100, Message(kind="reduce-scatter", among=2): 10}
        )
        == 155
    )
    assert sent({Message(kind="all-reduce", among=1): 100}) == 0


def test_an_iteration_is_counted_in_calls():
    found = calls(under("ddp", 2))
    assert (found.walks, found.replayed, found.updates) == (4 * 4, 2 * 6, 2)
    again = calls(under("ddp", 2, "old_policy=replay"))
    assert (again.walks, again.replayed) == (16 + 12, 12)
    compared = calls(under("ddp", 2, "kl=x", "backbone=sd3_tiny_lora"))
    assert (compared.walks, compared.replayed) == (16 + 12, 12)


@pytest.mark.parametrize(
    ("strategy", "count", "expected"),
    [
        ("ddp", 4, {("all-reduce", 4): 2 * 1000}),
        ("zero1", 4, {("all-reduce", 4): 2 * 1000, ("all-gather", 4): 2 * 1000}),
        ("zero2", 4, {("all-reduce", 4): 6 * 1000, ("all-gather", 4): 2 * 1000}),
        ("zero3", 4, {("all-gather", 4): 22 * 1280, ("reduce-scatter", 4): 6 * 1000}),
        ("fsdp", 4, {("all-gather", 4): 22 * 600 + 6 * 40, ("reduce-scatter", 4): 2 * 1000}),
        ("fsdp-microbatch", 4, {("all-gather", 4): 13440, ("reduce-scatter", 4): 6 * 1000}),
        (
            "hsdp",
            16,
            {("all-gather", 8): 13440, ("reduce-scatter", 8): 2000, ("all-reduce", 2): 250},
        ),
    ],
)
def test_what_a_strategy_exchanges(strategy, count, expected):
    found = exchanged(under(strategy, count, "microbatch=1").strategy, SIZE, CALLS)
    assert {tuple(message): size for message, size in found.items()} == expected


def test_one_process_exchanges_nothing():
    assert predict(composed(EXAMPLE)) == {}


def test_machines_of_a_ring_send_what_a_process_sends_and_replicas_for_all_of_theirs():
    ring, replicas = (
        {Message(kind="all-gather", among=16): 160},
        {Message(kind="all-reduce", among=2): 10},
    )
    assert leaving("fsdp", ring) == sent(ring) == 150
    assert leaving("hsdp", {Message(kind="all-gather", among=8): 80} | replicas) == 8 * 10


def test_room_is_where_the_first_phase_is_full():
    def memory(parameters):
        return Memory(
            held={"policy": 2 * parameters},
            phases={"a": {"x": parameters}, "b": {"y": 500}, "c": {}},
        )

    counts = [100, 200]
    found = [memory(count) for count in counts]
    assert room(counts, found, 3000) == pytest.approx(1000)  # a: 3 n
    assert room(counts, found, 1200) == pytest.approx(350)  # b: 2 n + 500
    assert room(counts, found, 400) == 0


def test_deeper_models_are_larger(monkeypatch):
    monkeypatch.setattr(scaling.memory, "predict", lambda exp: exp)
    counts, found = scaling.growth(spanning("fsdp", 8))
    assert counts[0] < counts[1] < 2 * counts[0]
    assert all(exp.strategy.processes == 8 for exp in found)


def test_efficiency_is_of_pairs():
    assert efficiency([(1.0, 2.0), (3.0, 4.0), (2.0, 2.0)]) == (
        "2.00",
        "2.00",
        "0.75 (0.50 to 1.00)",
    )


def test_a_process_tells_what_passed(monkeypatch, tmp_path):
    """Alone: seconds, and nothing exchanged."""
    monkeypatch.setattr("sys.argv", ["scaling.py", str(tmp_path / "told.json"), *EXAMPLE, *LEAST])
    monkeypatch.setattr(scaling, "TIMED", 1)
    scaling.main()
    told = scaling.json.loads(Path(tmp_path / "told.json").read_text())
    assert told["seconds"] > 0
    assert told["counted"] == told["predicted"] == {}
