"""Advantages, compared with a reference that is written with loops."""

import numpy as np
import pytest
import torch

from grpo_guard.advantage.group import Group
from grpo_guard.reward import rewards_from_parts
from grpo_guard.reward.mixture import combine
from grpo_guard.schema import ConfigError
from grpo_guard.types import Rewards

KINDS = ["group", "global", "none"]


def reference(total, group, std, clamp):
    """Return the advantages; NaN marks a sample that could not be scored."""
    kept = ~np.isnan(total)
    out = np.zeros(len(total))
    for i in np.flatnonzero(kept):
        mates = total[(group == group[i]) & kept]
        scale = {"group": mates.std() + 1e-4, "global": total[kept].std() + 1e-4, "none": 1.0}[std]
        out[i] = np.clip((total[i] - mates.mean()) / scale, -clamp, clamp)
    return out


def advantages(total, group, std="group", clamp=5.0):
    return Group(std=std, clamp=clamp)(
        rewards_from_parts(total=torch.as_tensor(total).float()), torch.as_tensor(group)
    ).numpy()


@pytest.fixture
def samples():
    """Return rewards and groups: groups of several sizes, out of order, a fifth of NaNs."""
    random = np.random.default_rng(0)
    total = random.normal(0.3, 0.2, 200).astype(np.float32)
    total[random.random(200) < 0.2] = np.nan
    return total, random.integers(0, 12, 200)


@pytest.mark.parametrize("clamp", [5.0, 1.0])
@pytest.mark.parametrize("std", KINDS)
def test_reference(std, clamp, samples):
    total, group = samples
    wanted = reference(total.astype(np.float64), group, std, clamp)
    assert np.allclose(advantages(total, group, std, clamp), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("std", KINDS)
def test_a_failure_has_no_advantage_and_does_not_count(std, samples):
    total, group = samples
    kept = ~np.isnan(total)
    everyone = advantages(total, group, std)
    assert (everyone[~kept] == 0).all()
    assert np.allclose(everyone[kept], advantages(total[kept], group[kept], std), atol=1e-7)


@pytest.mark.parametrize("std", KINDS)
def test_a_constant_group_has_no_advantage(std):
    advantage = advantages([0.1] * 24 + [0.0, 1.0], [0] * 24 + [1, 1], std)
    assert np.abs(advantage[:24]).max() < 1e-6
    assert advantage[25] == -advantage[24] > 0.1


@pytest.mark.parametrize("std", KINDS)
def test_equal_scores_in_float64_have_advantages_of_exactly_0(std):
    total = torch.full((3,), 0.1, dtype=torch.float64)
    rewards = Rewards(
        total=total, parts={"toy": total}, weights={"toy": 1.0}, failed=torch.zeros(3) > 0
    )
    assert (Group(std=std)(rewards, torch.zeros(3, dtype=torch.long)) == 0).all()


@pytest.mark.parametrize("std", KINDS)
def test_a_group_of_failures_has_no_advantage(std):
    assert advantages([np.nan, np.nan, 1.0, 2.0], [0, 0, 1, 1], std)[:2].tolist() == [0, 0]


def test_a_batch_of_failures_has_no_advantage():
    assert advantages([np.nan] * 4, [0, 0, 1, 1]).tolist() == [0] * 4


def test_extremes_are_clamped():
    total = [1.0] + [0.0] * 99
    assert advantages(total, [0] * 100).max() == 5
    assert advantages(total, [0] * 100, clamp=3.0).max() == 3


@pytest.mark.parametrize("std", KINDS)
def test_order_does_not_matter(std, samples):
    total, group = samples
    order = np.random.default_rng(1).permutation(len(total))
    assert np.allclose(
        advantages(total[order], group[order], std), advantages(total, group, std)[order], atol=1e-6
    )


def test_each_group_is_centred_on_its_own_mean():
    rewards = [0.0, 1.0, 10.0, 11.0]
    two_groups = advantages(rewards, [0, 0, 1, 1])
    one_group = advantages(rewards, [0] * 4)
    assert two_groups == pytest.approx([-1, 1, -1, 1], rel=1e-3)
    assert one_group[1] < 0 < one_group[2]


def test_a_shift_and_a_scale_of_the_rewards_do_not_matter(samples):
    total, group = samples
    assert np.allclose(advantages(4 * total + 1, group), advantages(total, group), atol=5e-3)


@pytest.mark.parametrize("clamp", [0.0, -1.0])
def test_clamp_is_positive(clamp):
    with pytest.raises(ConfigError, match=f"clamp={clamp} is not positive"):
        Group(std="group", clamp=clamp)


@pytest.mark.parametrize("std", KINDS)
def test_rewards_may_be_normalised_one_by_one(std, samples):
    total, group = samples
    other = np.random.default_rng(2).normal(20, 30, 200).astype(np.float32)
    scores = {
        name: rewards_from_parts(**{name: torch.as_tensor(part)})
        for name, part in (("a", total), ("b", other))
    }
    combined = combine(scores, {"a": 1.0, "b": 0.25})
    other = np.where(np.isnan(total), np.nan, other)
    wanted = (
        reference(total.astype(float), group, std, np.inf)
        + reference(other.astype(float), group, std, np.inf) / 4
    )
    groups = torch.as_tensor(group)
    per_reward = Group(std=std, aggregate="per_reward")(combined, groups).numpy()
    assert np.allclose(per_reward, np.nan_to_num(wanted).clip(-5, 5), rtol=1e-5, atol=1e-5)
    summed = Group(std=std)(combined, groups).numpy()
    assert np.allclose(per_reward, summed, atol=1e-2) == (std == "none")


def test_a_mixture_of_mixtures_keeps_its_weights():
    one = torch.ones(3)
    inner = combine(
        {"a": rewards_from_parts(a=one), "b": rewards_from_parts(b=2 * one, aside=one)},
        {"a": 2.0, "b": 3.0},
    )
    outer = combine({"inner": inner, "c": rewards_from_parts(c=one)}, {"inner": 10.0, "c": 1.0})
    assert outer.weights == {"a": 20.0, "b": 30.0, "c": 1.0}
    assert outer.total.tolist() == [81.0] * 3


def test_the_only_scored_sample_of_a_group_has_no_advantage():
    total = torch.tensor([3.0, torch.nan, 1.0, 2.0])
    rewards = rewards_from_parts(score=total)
    advantage = Group(std="none")(rewards, torch.tensor([0, 0, 1, 1]))
    assert advantage.tolist() == [0.0, 0.0, -0.5, 0.5]
