"""Which prompts an iteration asks for; and files of prompts."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_guard.data import Split, draw, plan
from grpo_guard.data.prompts import Lines
from grpo_guard.data.world import World
from grpo_guard.types import ConfigError, Prompt

MANY = [Prompt(text=f"{tag}{i}", tag=tag) for tag, count in (("a", 5), ("b", 3), ("c", 7)) for i in range(count)]
LINES = Lines(path="unread", heldout="unread", prompts=4, repeats=3)


def texts(prompts):
    return [prompt.text for prompt in prompts]


def test_a_plan_is_a_pure_function():
    first, again = (plan(LINES, MANY, seed=3, iteration=5) for _ in range(2))
    assert texts(first.prompts) == texts(again.prompts)
    assert texts(plan(LINES, MANY, seed=4, iteration=5).prompts) != texts(first.prompts)
    assert texts(plan(LINES, MANY, seed=3, iteration=6).prompts) != texts(first.prompts)


def test_a_batch_is_groups_of_repeats():
    batch = plan(LINES, MANY, seed=0, iteration=2)
    assert batch.group.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert batch.sample.tolist() == list(range(12))
    assert texts(batch.each()) == [text for text in texts(batch.prompts) for _ in range(3)]


def test_iterations_continue_one_sequence():
    planned = [prompt for i in range(6) for prompt in plan(LINES, MANY, seed=1, iteration=i).prompts]
    assert texts(planned) == texts(draw(MANY, range(24), 1, "plan"))


@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 9))
def test_every_prompt_of_a_tag_once_per_epoch(seed, epoch):
    for turn, (tag, count) in enumerate((("a", 5), ("b", 3), ("c", 7))):
        positions = [3 * (epoch * count + i) + turn for i in range(count)]
        assert sorted(texts(draw(MANY, positions, seed, "x"))) == [f"{tag}{i}" for i in range(count)]


def test_tags_take_turns_however_many_prompts_they_have():
    drawn = draw(MANY, range(30), 0)
    assert Counter(prompt.tag for prompt in drawn) == {"a": 10, "b": 10, "c": 10}
    assert [prompt.tag for prompt in drawn[:4]] == ["a", "b", "c", "a"]


def test_epochs_are_shuffled_anew():
    prompts = [Prompt(text=str(i)) for i in range(8)]
    epochs = {tuple(texts(draw(prompts, range(8 * e, 8 * e + 8), 0))) for e in range(10)}
    assert len(epochs) == 10


def test_accepted_keeps_what_a_reward_can_score():
    split = Split(train=tuple(MANY), heldout=tuple(MANY[:6])).accepted(lambda prompt: prompt.tag == "b")
    assert texts(split.train) == ["b0", "b1", "b2"]
    assert texts(split.heldout) == ["b0"]


@pytest.mark.parametrize(("tag", "side"), [("z", "15 training"), ("c", "5 held-out")])
def test_accepted_refuses_an_empty_side(tag, side):
    split = Split(train=tuple(MANY), heldout=tuple(MANY[:5]))
    with pytest.raises(ConfigError, match=f"none of the {side} prompts suits this reward; choose another data= or"):
        split.accepted(lambda prompt: prompt.tag == tag)


def test_lines_are_prompts(tmp_path):
    train, heldout = tmp_path / "train.txt", tmp_path / "heldout.txt"
    train.write_text("a cat\n\n  ein Mädchen mit Äpfeln \r\n", encoding="utf-8")
    heldout.write_text("a dog", encoding="utf-8")
    split = Lines(path=str(train), heldout=str(heldout), prompts=1, repeats=2).load()
    assert texts(split.train) == ["a cat", "ein Mädchen mit Äpfeln"]
    assert texts(split.heldout) == ["a dog"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "holds no prompt; give one per line"),
        (b"\n \n", "holds no prompt; give one per line"),
        ("Äpfel".encode("latin-1"), r"is not UTF-8 \(byte 0\); save it as UTF-8"),
        (None, r"cannot be read \(No such file or directory\); give a text file"),
    ],
)
@pytest.mark.parametrize("key", ["path", "heldout"])
def test_bad_files(tmp_path, key, content, line):
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("a cat", encoding="utf-8")
    if content is not None:
        bad.write_bytes(content)
    paths = {"path": str(good), "heldout": str(good)} | {key: str(bad)}
    with pytest.raises(ConfigError, match=rf"^data\.{key}={bad} {line}$"):
        Lines(**paths, prompts=1, repeats=2).load()


def test_a_folder_is_not_a_prompt_file(tmp_path):
    with pytest.raises(ConfigError, match="Is a directory"):
        Lines(path=str(tmp_path), heldout=str(tmp_path), prompts=1, repeats=2).load()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"prompts": 0}, "prompts=0 is not positive"),
        ({"repeats": 1}, "repeats=1 leaves nothing to compare in a group; give 2 or more"),
        ({"families": ["shapes", "cars"]}, r"families=\['cars'\] are unknown; choose from"),
        ({"families": []}, r"families=\[\] is empty; choose from"),
    ],
)
def test_refusals(changes, line):
    with pytest.raises(ConfigError, match=line):
        World(**{"prompts": 2, "repeats": 2, "families": ["shapes"]} | changes)
    if "families" not in changes:
        with pytest.raises(ConfigError, match=line):
            Lines(**{"path": "a", "heldout": "b", "prompts": 2, "repeats": 2} | changes)


def test_the_world_holds_prompts_out():
    split = World(prompts=2, repeats=2, families=["shapes"]).load()
    assert split.train
    assert split.heldout
    assert not set(texts(split.train)) & set(texts(split.heldout))
