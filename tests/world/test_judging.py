"""The measures of how well the shipped scorers judge pictures."""

from dataclasses import dataclass

import pytest
import torch

from grpo_guard.reward import rewards_from_parts
from grpo_guard.reward.geneval import GenEval
from grpo_guard.reward.world_detector import WorldDetector
from grpo_guard.world import checker
from tiny import judging


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch):
    monkeypatch.setattr(judging, "PAIRS", 48)


@dataclass
class Scoring:
    """A reward that accepts everything."""

    score: object

    def accepts(self, prompt):
        return True

    def load(self, device):
        return self.score


def score_exactly(images, prompts):
    return rewards_from_parts(exact=checker.check_pictures(images, prompts).exact)


def score_alike(images, prompts):
    return rewards_from_parts(alike=torch.zeros(len(images)))


@pytest.mark.parametrize("measure", judging.MEASURES.values(), ids=judging.MEASURES)
def test_an_exact_scorer_is_always_right_and_an_indifferent_one_never(measure):
    right = measure(Scoring(score_exactly))
    assert len(right) >= 40
    assert right.float().mean() >= 0.95
    assert not measure(Scoring(score_alike)).any()


def test_genevals_accuracy_tells_captions_apart_and_does_not_see_what_is_too_much():
    lenient = GenEval(detector=WorldDetector(), measure="accuracy")
    right, nothing_too_much = (measure(lenient).float() for measure in judging.MEASURES.values())
    assert 20 <= len(right) < judging.PAIRS  # captions with words are left out
    assert right.mean() > 0.9
    assert nothing_too_much.mean() < 0.1
