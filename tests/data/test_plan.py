"""The prompts of an iteration: a pure function, in epochs, tag by tag or prompt by prompt."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_guard import rng
from grpo_guard.advantage.group import Group
from grpo_guard.data import Split, pick_prompts, plan
from grpo_guard.data.world import World
from grpo_guard.reward import rewards_from_parts
from grpo_guard.schema import ConfigError
from grpo_guard.types import Prompt

MANY = [
    Prompt(text=f"{tag}{i}", tag=tag)
    for tag, count in (("a", 5), ("b", 3), ("c", 7))
    for i in range(count)
]
TWICE = [
    Prompt(text=text, tag=tag)
    for text, tag in (("cat", "x"), ("dog", "x"), ("cat", "x"), ("cat", "y"))
]
SPLIT = Split(train=tuple(MANY), heldout=(), in_turn=True)
DATA = World(prompts=4, repeats=3, families=["shapes"])


def texts(prompts):
    return [prompt.text for prompt in prompts]


def test_a_plan_is_a_pure_function():
    first, again = (plan(DATA, SPLIT, seed=3, iteration=5) for _ in range(2))
    assert texts(first.prompts) == texts(again.prompts)
    assert texts(plan(DATA, SPLIT, seed=4, iteration=5).prompts) != texts(first.prompts)
    assert texts(plan(DATA, SPLIT, seed=3, iteration=6).prompts) != texts(first.prompts)


def test_a_batch_is_groups_of_repeats():
    batch = plan(DATA, SPLIT, seed=0, iteration=2)
    assert batch.group.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert batch.sample.tolist() == list(range(12))
    assert texts(batch.prompts_by_sample()) == [
        text for text in texts(batch.prompts) for _ in range(3)
    ]


def test_iterations_continue_one_sequence():
    planned = [
        prompt for i in range(6) for prompt in plan(DATA, SPLIT, seed=1, iteration=i).prompts
    ]
    assert texts(planned) == texts(pick_prompts(MANY, True, range(24), 1, "plan"))


@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 9))
def test_every_prompt_of_a_tag_once_per_epoch(seed, epoch):
    for turn, (tag, count) in enumerate((("a", 5), ("b", 3), ("c", 7))):
        positions = [3 * (epoch * count + i) + turn for i in range(count)]
        assert sorted(texts(pick_prompts(MANY, True, positions, seed, "x"))) == [
            f"{tag}{i}" for i in range(count)
        ]


def test_tags_take_turns_however_many_prompts_they_have():
    picked = pick_prompts(MANY, True, range(30), 0)
    assert Counter(prompt.tag for prompt in picked) == {"a": 10, "b": 10, "c": 10}
    assert [prompt.tag for prompt in picked[:4]] == ["a", "b", "c", "a"]


def test_without_turns_every_prompt_comes_equally_often():
    picked = pick_prompts(MANY, False, range(30), 0)
    assert Counter(texts(picked[:15])) == Counter(texts(picked[15:])) == Counter(texts(MANY))
    assert texts(picked[:15]) != texts(picked[15:])


def test_epochs_are_shuffled_anew():
    prompts = [Prompt(text=str(i)) for i in range(8)]
    epochs = {
        tuple(texts(pick_prompts(prompts, True, range(8 * e, 8 * e + 8), 0))) for e in range(10)
    }
    assert len(epochs) == 10


def test_an_epoch_is_shuffled_once(monkeypatch):
    """With a hundred thousand prompts, each shuffle takes milliseconds."""
    shuffled = []
    permute = rng.permutation
    monkeypatch.setattr(rng, "permutation", lambda *args: shuffled.append(args) or permute(*args))
    pick_prompts(MANY, True, range(24), 0)
    assert [count for count, *_ in sorted(shuffled)] == [3] * 3 + [5] * 2 + [7] * 2


@given(seed=st.integers(0, 2**40))
def test_equal_prompts_count_separately(seed):
    cats_and_dog = [prompt for prompt in TWICE if prompt.tag == "x"]
    picked = pick_prompts(cats_and_dog, True, range(3), seed)
    assert Counter(map(id, picked)) == {id(prompt): 1 for prompt in TWICE[:3]}


def test_equal_prompts_are_groups_of_their_own():
    batch = plan(DATA, Split(train=tuple(TWICE[::2]), heldout=()), seed=0, iteration=0)
    assert texts(batch.prompts) == ["cat"] * 4
    scores = torch.tensor([0.0, 1, 2]).repeat(4) + 100 * batch.group
    advantage = Group(std="group")(rewards_from_parts(total=scores), batch.group)
    assert advantage.tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5] * 4, rel=1e-3)


def test_select_keeps_what_a_reward_can_score():
    whole = Split(train=tuple(MANY), heldout=tuple(MANY[:6]), in_turn=True)
    split = whole.select(lambda prompt: prompt.tag == "b")
    assert split.in_turn
    assert texts(split.train) == ["b0", "b1", "b2"]
    assert texts(split.heldout) == ["b0"]


@pytest.mark.parametrize(("tag", "side"), [("z", "15 training"), ("c", "5 held-out")])
def test_select_refuses_an_empty_side(tag, side):
    split = Split(train=tuple(MANY), heldout=tuple(MANY[:5]))
    with pytest.raises(
        ConfigError, match=f"none of the {side} prompts suits this reward; choose another data= or"
    ):
        split.select(lambda prompt: prompt.tag == tag)
