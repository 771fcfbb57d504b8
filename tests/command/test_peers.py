"""The plain loop of bench.py peers gives the numbers of this program."""

from dataclasses import replace

import pytest
import torch

from grpo_guard.command.benches import peers
from grpo_guard.command.benches.memory import compose_experiment
from grpo_guard.train import iterate

SMALL = [
    "data.prompts=2", "data.repeats=4", "microbatch=4", "steps=4", "watch=none", "eval.prompts=2",
    "eval.pictures=2", "eval.kl=false", "strategy.threads=1",
]  # fmt: skip
SAME = 1e-3
"""Adam divides a gradient by itself at first, so weights with hardly any differ by rounding."""


@pytest.fixture
def loops():
    plain, sessions = peers.prepare_loops(SMALL, {"eager": []})
    return sessions["eager"], plain


def test_both_loops_draw_and_learn_the_same(loops):
    ours, plain = loops
    rewards = []
    score = ours.score

    def record(images, prompts):
        scored = score(images, prompts)
        rewards.append(scored.total)
        return scored

    before = peers.flatten(plain.parameters)
    expected = plain.iterate(0)
    ours, _ = iterate(replace(ours, score=record), 0)
    # A score multiplies the rounding of its picture, which depends on the processor.
    assert torch.allclose(torch.cat(rewards), expected, rtol=1e-4)
    assert expected.std() > 0
    moved = peers.flatten(ours.learner.parameters), peers.flatten(plain.parameters)
    assert peers.distance(before, *moved) < SAME
    half_way = (before + moved[0]) / 2
    assert peers.distance(before, moved[0], half_way) == pytest.approx(0.5, rel=1e-3)


def test_both_rows_follow_the_common_loop(monkeypatch):
    """Compiling takes minutes, so the compiled row runs as it is; its settings are tried."""
    compiled = []
    monkeypatch.setattr("grpo_guard.pipeline.model.compile_blocks", compiled.append)
    paces = peers.compare_loops(SMALL, rounds=1)
    assert len(compiled) == 1
    assert [*paces.own] == ["eager", "compiled"]
    assert all(difference < SAME for difference in paces.differences.values())
    assert all(len(seconds) == 1 for seconds in (paces.common, *paces.own.values()))
    assert len(peers.make_table(paces).rows) == 3


def test_the_rows_do_the_same_work():
    settings = ["clipping=vanilla", *peers.SETTINGS]
    eager, compiled = (compose_experiment([*settings, *own]) for own in peers.VARIANTS.values())
    assert [eager.backbone.compile, compiled.backbone.compile] == [False, True]
    assert eager.batch_sizes.samples == compiled.batch_sizes.samples
    assert eager.batch_sizes.rows_per_update == compiled.batch_sizes.rows_per_update


def test_the_table_compares_round_by_round() -> None:
    paces = peers.Paces(
        common=(2.0, 4.0, 9.0), own={"eager": (1.0, 4.0, 6.0)}, differences={"eager": 0.01}
    )
    table = peers.make_table(paces)
    columns = [list(column.cells) for column in table.columns]
    assert [row[1] for row in columns] == [
        "this program, eager", "4.00", "1.500 (1.000 to 2.000)", "1.0e-02",
    ]  # fmt: skip
