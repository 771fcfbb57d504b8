"""The self-test passes rewards that work and stops those that do not."""

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
    """A reward as far as the self-test asks it."""

    which: tuple = (True, True)

    compares = False

    def accepts(self, prompt):
        return any(
            prompt in pair and wanted for pair, wanted in zip(PAIRS, self.which, strict=True)
        )

    weight_bytes = 0

    def load(self, device):
        raise NotImplementedError


def facts(images, prompts):
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
            lambda images, prompts: rewards_from_parts(p=-facts(images, prompts)),
            "reward gives -1 to a picture of 'a red circle'",
        ),
        (lambda images, prompts: rewards_from_parts(p=facts(images, prompts) * math.nan), "nan"),
        (lambda images, prompts: rewards_from_parts(p=facts(images, prompts) / 0), "inf"),
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
@pytest.mark.parametrize("which", [(True, True), (True, False)])
def test_rewards_that_do_not_work_are_stopped(score, message, which):
    remedy = "the part p is out of order; load the published weights, or set selftest=false"
    with pytest.raises(ConfigError, match=remedy) as caught:
        check_reward(Accepts(which=which), score)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_part_of_a_sum_must_work():
    def score(images, prompts):
        good, bad = (
            rewards_from_parts(good=facts(images, prompts)),
            rewards_from_parts(bad=-0.1 * facts(images, prompts)),
        )
        return combine({"good": good, "bad": bad}, {"good": 1.0, "bad": 1.0})

    with pytest.raises(ConfigError, match="the part bad is out of order"):
        check_reward(Accepts(), score)


def test_parts_that_only_look_on_may_do_as_they_like():
    check_reward(
        Accepts(),
        lambda images, prompts: rewards_from_parts(
            p=facts(images, prompts), aside=-facts(images, prompts)
        ),
    )


@pytest.mark.parametrize("sign", [-1.0, 0.0])
def test_each_pair_is_asked_about(sign):
    """A reward that is right about shapes and wrong about words, or blind to them."""

    def score(images, prompts):
        signs = torch.tensor([sign if prompt.include[0].text else 1.0 for prompt in prompts])
        return rewards_from_parts(p=signs * facts(images, prompts))

    check_reward(Accepts(which=(True, False)), score)
    with pytest.raises(ConfigError, match="milk"):
        check_reward(Accepts(), score)


def test_a_reward_of_other_prompts_is_left_alone():
    check_reward(Accepts(which=(False, False)), lambda *_: pytest.fail("was called"))
