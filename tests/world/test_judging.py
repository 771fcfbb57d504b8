"""The measures of how well the shipped scorers judge pictures."""

import pytest
import torch

from grpo_guard.reward import rewards_from_parts
from grpo_guard.world import checker
from tiny import judging


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch):
    monkeypatch.setattr(judging, "PAIRS", 48)


def score_exactly(images, prompts):
    return rewards_from_parts(exact=checker.check_pictures(images, prompts).exact)


def score_alike(images, prompts):
    return rewards_from_parts(alike=torch.zeros(len(images)))


@pytest.mark.parametrize("measure", judging.MEASURES.values(), ids=judging.MEASURES)
def test_an_exact_scorer_is_always_right_and_an_indifferent_one_never(measure):
    right = measure(score_exactly)
    assert len(right) >= 40
    assert right.float().mean() >= 0.95
    assert not measure(score_alike).any()
