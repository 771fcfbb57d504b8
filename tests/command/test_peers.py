"""The plain loop of bench.py peers gives the numbers of this program."""

from dataclasses import replace

import pytest
import torch

from grpo_guard.command.benches import peers
from grpo_guard.train import iterate

SMALL = [
    "data.prompts=2", "data.repeats=4", "microbatch=4", "steps=4", "watch=none", "eval.prompts=2",
    "eval.pictures=2", "eval.kl=false", "strategy.threads=1",
]  # fmt: skip
SAME = 1e-3
"""Adam divides a gradient by itself at first, so weights with hardly any differ by rounding."""


@pytest.fixture
def loops():
    return peers.prepare_loops(SMALL)


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
    assert torch.allclose(torch.cat(rewards), expected, atol=1e-5)
    assert expected.std() > 0
    moved = peers.flatten(ours.learner.parameters), peers.flatten(plain.parameters)
    assert peers.distance(before, *moved) < SAME
    half_way = (before + moved[0]) / 2
    assert peers.distance(before, moved[0], half_way) == pytest.approx(0.5, rel=1e-3)
