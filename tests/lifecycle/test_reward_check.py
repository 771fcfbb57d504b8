"""The self-test accepts rewards that work and refuses those that do not."""

import math
from dataclasses import dataclass

import pytest
import torch

from grpo_guard.lifecycle.reward_check import PAIRS, check_reward
from grpo_guard.reward import rewards_from_parts
from grpo_guard.reward.mixture import combine
from grpo_guard.schema import ConfigError
from grpo_guard.world.checker import check_pictures

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Accepts:
    """A reward that only states which prompts it accepts; tests pass its scorer by themselves."""

    pairs: tuple = (True, True)
    """Whether it accepts the prompts of each pair."""

    compares = False
    weight_bytes = 0

    def accepts(self, prompt):
        return any(
            prompt in pair and accepted for pair, accepted in zip(PAIRS, self.pairs, strict=True)
        )

    def load(self, device):
        raise NotImplementedError


def share_of_facts(images, prompts):
    """Score the share of a prompt's facts that its image shows, in [0, 1]."""
    return check_pictures(images, prompts).facts.float()


@pytest.mark.parametrize(
    "name", ["pickscore", "pickscore_gold", "geneval", "world", "ocr", "mixture"]
)
def test_rewards_that_work_pass(choice, name):
    reward = choice("reward", name)
    check_reward(reward, reward.load(CPU))


def test_a_reward_that_does_not_read_the_prompt_passes(choice):
    reward = choice("reward", "statistics")
    check_reward(reward, reward.load(CPU))
    for sign in (1, -1):
        check_reward(
            Accepts(),
            lambda images, prompts, sign=sign: rewards_from_parts(
                light=sign * images.mean((1, 2, 3))
            ),
        )


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (
            lambda images, prompts: rewards_from_parts(p=-share_of_facts(images, prompts)),
            "reward gives -1 to a picture of 'a red circle'",
        ),
        (
            lambda images, prompts: rewards_from_parts(
                p=share_of_facts(images, prompts) * math.nan
            ),
            "nan",
        ),
        (lambda images, prompts: rewards_from_parts(p=share_of_facts(images, prompts) / 0), "inf"),
        (
            lambda images, prompts: rewards_from_parts(p=torch.full((len(prompts),), 0.25)),
            "reward gives 0.25 to known pictures",
        ),
        (
            lambda images, prompts: rewards_from_parts(
                p=torch.tensor([len(p.text) for p in prompts]).float()
            ),
            "right or wrong",
        ),
    ],
)
@pytest.mark.parametrize("pairs", [(True, True), (True, False)])
def test_rewards_that_do_not_work_are_refused(score, message, pairs):
    remedy = "the part p is out of order; load the published weights, or set selftest=false"
    with pytest.raises(ConfigError, match=remedy) as error:
        check_reward(Accepts(pairs=pairs), score)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_part_of_a_sum_must_work():
    def score(images, prompts):
        good = rewards_from_parts(good=share_of_facts(images, prompts))
        bad = rewards_from_parts(bad=-0.1 * share_of_facts(images, prompts))
        return combine({"good": good, "bad": bad}, {"good": 1.0, "bad": 1.0})

    with pytest.raises(ConfigError, match="the part bad is out of order"):
        check_reward(Accepts(), score)


def test_parts_that_do_not_count_towards_the_total_are_not_tested():
    def score(images, prompts):
        shares = share_of_facts(images, prompts)
        return rewards_from_parts(p=shares, aside=-shares)

    check_reward(Accepts(), score)


def test_a_part_of_weight_0_is_not_tested():
    def score(images, prompts):
        good = rewards_from_parts(good=share_of_facts(images, prompts))
        alike = rewards_from_parts(alike=torch.full((len(prompts),), 0.25))
        return combine({"good": good, "alike": alike}, {"good": 1.0, "alike": 0.0})

    check_reward(Accepts(), score)


@pytest.mark.parametrize("sign", [-1.0, 0.0])
def test_each_accepted_pair_is_tested(sign):
    """The reward is right about shapes, and wrong about words or indifferent to them."""

    def score(images, prompts):
        signs = torch.tensor([sign if prompt.include[0].text else 1.0 for prompt in prompts])
        return rewards_from_parts(p=signs * share_of_facts(images, prompts))

    check_reward(Accepts(pairs=(True, False)), score)
    with pytest.raises(ConfigError, match="milk"):
        check_reward(Accepts(), score)


def test_a_reward_that_accepts_no_known_prompt_is_not_tested():
    check_reward(Accepts(pairs=(False, False)), lambda *_: pytest.fail("was called"))
