"""Mixtures of rewards, and every reward's YAML."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from grpo_guard.advantage.group import Group
from grpo_guard.reward import Reward, rewards_from_parts
from grpo_guard.reward.mixture import Mixture
from grpo_guard.schema import ConfigError, component
from grpo_guard.types import Prompt

CPU = torch.device("cpu")
CONF = Path(__file__).parents[2] / "conf"
NAN = float("nan")
IMAGES, PROMPTS = torch.zeros(3, 3, 4, 4), [Prompt(text="a")] * 3


@component
class Stub:
    """Scores images with these values, and accepts prompts that hold `word`."""

    values: list
    word: str = "a"
    name: str = "stub"

    compares = False

    def accepts(self, prompt):
        return self.word in prompt.text

    weight_bytes = 0

    def load(self, device):
        parts = {
            self.name: torch.tensor(self.values),
            f"{self.name}_twice": 2 * torch.tensor(self.values),
        }
        return lambda images, prompts: rewards_from_parts(**parts)


A, B = (
    Stub(values=[1.0, 2.0, NAN], name="a", word="x"),
    Stub(values=[10.0, NAN, 30.0], name="b", word="y"),
)


def test_totals_add_up_parts_stay_apart_failures_spread():
    scores = Mixture(rewards={"a": A, "b": B}, weights={"a": 1.0, "b": 0.5}).load(CPU)(
        IMAGES, PROMPTS
    )
    torch.testing.assert_close(scores.total, torch.tensor([6.0, NAN, NAN]), equal_nan=True)
    assert scores.failed.tolist() == [False, True, True]
    assert list(scores.parts) == ["a", "a_twice", "b", "b_twice"]
    torch.testing.assert_close(
        scores.parts["b_twice"], torch.tensor([20.0, NAN, 60.0]), equal_nan=True
    )


@component
class Contest(Stub):
    """A reward that compares pictures."""

    compares = True


def test_a_mixture_compares_where_a_part_does():
    weights = {"a": 1.0, "b": 0.5}
    assert not Mixture(rewards={"a": A, "b": B}, weights=weights).compares
    assert Mixture(rewards={"a": A, "b": Contest(values=[])}, weights=weights).compares


@component
class Talkative(Stub):
    """A reward with these notes."""

    notes: tuple

    def load(self, device):
        quiet = Stub.load(self, device)
        return lambda images, prompts: replace(quiet(images, prompts), notes=self.notes)


def test_notes_begin_with_the_name_of_their_reward():
    a = Talkative(values=[1.0, 2.0, 3.0], name="a", notes=(("one", "two"), (), ("three",)))
    c = Talkative(values=[1.0, 2.0, 3.0], name="c", notes=(("four",), (), ()))
    mixture = Mixture(
        rewards={"x": a, "quiet": B, "y": c}, weights={"x": 1.0, "quiet": 1.0, "y": 1.0}
    )
    assert mixture.load(CPU)(IMAGES, PROMPTS).notes == (
        ("x: one", "x: two", "y: four"),
        (),
        ("x: three",),
    )
    assert (
        Mixture(rewards={"a": A, "b": B}, weights={"a": 1.0, "b": 1.0})
        .load(CPU)(IMAGES, PROMPTS)
        .notes
        == ()
    )


def test_a_reward_of_weight_0_fails_no_image():
    scores = Mixture(rewards={"a": A, "b": B}, weights={"a": 1.0, "b": 0.0}).load(CPU)(
        IMAGES, PROMPTS
    )
    alone = A.load(CPU)(IMAGES, PROMPTS)
    assert scores.failed.tolist() == alone.failed.tolist() == [False, False, True]
    assert torch.equal(scores.total.nan_to_num(-1), alone.total.nan_to_num(-1))
    assert scores.parts["b"].isnan().tolist() == [False, True, False]
    for aggregate in ("weighted_sum", "per_reward"):
        advantage, group = Group(std="group", aggregate=aggregate), torch.zeros(3, dtype=torch.long)
        assert torch.equal(advantage(scores, group), advantage(alone, group))


def test_only_what_all_accept():
    mixture = Mixture(rewards={"a": A, "b": B}, weights={"a": 1.0, "b": 1.0})
    assert [mixture.accepts(Prompt(text=text)) for text in ("xy", "x", "y", "")] == [
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "weights", [{}, {"a": 1.0}, {"a": 1.0, "c": 1.0}, {"a": 1.0, "b": NAN}, {"a": 0.0, "b": 0.0}]
)
def test_weights_must_fit(weights):
    with pytest.raises(ConfigError, match=r"^weights[.=]"):
        Mixture(rewards={"a": A, "b": B}, weights=weights)


def test_nothing_to_mix_is_refused():
    with pytest.raises(ConfigError, match="is empty"):
        Mixture(rewards={}, weights={})


def test_parts_of_one_name_are_refused():
    score = Mixture(rewards={"a": A, "b": A}, weights={"a": 1.0, "b": 1.0}).load(CPU)
    with pytest.raises(ConfigError, match="change their `name`"):
        score(IMAGES, PROMPTS)


def build(choice, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[f"+reward={choice}", *overrides])
    return instantiate(config.reward, _convert_="all")


@pytest.mark.parametrize("choice", sorted(path.stem for path in (CONF / "reward").glob("*.yaml")))
def test_every_choice_is_a_reward(choice):
    assert isinstance(build(choice), Reward)


def test_mixture_grows_as_its_comment_says():
    header, _, _ = (CONF / "reward" / "mixture.yaml").read_text().partition("defaults:")
    mixture = build("mixture", *re.findall(r"\+\S+", header))
    assert set(mixture.weights) == {"pickscore", "geneval", "ocr"}
    assert mixture.accepts(Prompt(text='the word "stop"')) is False
