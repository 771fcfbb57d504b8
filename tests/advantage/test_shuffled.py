"""Shuffled advantages keep the sizes of a group's steps and lose the signal."""

import pytest
import torch

from grpo_guard.advantage.group import Group
from grpo_guard.advantage.shuffled import Shuffled
from grpo_guard.reward import rewards_from_parts

RULE = Group(std="group")
GROUP = torch.arange(6).repeat_interleave(8)


def rewards(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return rewards_from_parts(grey=torch.randn(48, generator=generator))


def test_each_group_keeps_its_advantages():
    plain = RULE(rewards(), GROUP)
    shuffled = Shuffled(rule=RULE)(rewards(), GROUP)
    for number in range(6):
        assert torch.equal(
            plain[number == GROUP].sort().values, shuffled[number == GROUP].sort().values
        )
    assert not torch.equal(plain, shuffled)


def test_the_signal_is_gone():
    """Over many batches, an advantage says nothing of the sample's reward."""
    plain, shuffled, scores = [], [], []
    for seed in range(60):
        batch = rewards(seed)
        scores.append(batch.total)
        plain.append(RULE(batch, GROUP))
        shuffled.append(Shuffled(rule=RULE)(batch, GROUP))
    both = torch.stack([torch.cat(scores), torch.cat(plain), torch.cat(shuffled)])
    correlation = both.corrcoef()
    assert correlation[0, 1] > 0.9
    assert abs(correlation[0, 2]) < 4 / len(both[0]) ** 0.5


def test_the_same_rewards_are_shuffled_alike_and_others_otherwise():
    shuffle = Shuffled(rule=RULE)
    assert torch.equal(shuffle(rewards(), GROUP), shuffle(rewards(), GROUP))
    ranks = [shuffle(rewards(seed), GROUP).view(6, 8).argsort(1) for seed in (0, 1)]
    assert not torch.equal(*ranks)


def test_failed_samples_keep_advantage_0():
    batch = rewards()
    batch.total[[3, 17]] = torch.nan
    failed = rewards_from_parts(grey=batch.total)
    shuffled = Shuffled(rule=RULE)(failed, GROUP)
    assert shuffled[[3, 17]].tolist() == [0, 0]
    assert shuffled.abs().sum().item() == pytest.approx(
        RULE(failed, GROUP).abs().sum().item(), rel=1e-6
    )


def test_the_shuffle_of_known_rewards_is_known():
    """Runs with shuffled advantages can be repeated by later versions."""
    batch = rewards_from_parts(grey=torch.arange(8.0))
    shuffled = Shuffled(rule=RULE)(batch, torch.zeros(8).long())
    assert shuffled.dtype == torch.float32
    assert shuffled.argsort().tolist() == [7, 5, 6, 3, 2, 0, 1, 4]
