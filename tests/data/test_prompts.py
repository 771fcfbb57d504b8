"""Files of prompts: what is read, what is held out, and what is refused."""

import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_guard.data.prompts import Lines, place, plain
from grpo_guard.schema import ConfigError, require
from grpo_guard.types import Prompt

NUMBERED = [f"prompt {i}" for i in range(400)]
GENEVAL = {"single_object", "two_object", "counting", "colors", "position", "color_attr"}


def lines(path, heldout=None, **changes):
    settings = {"heldout_share": 0.25, "parse": plain, "prompts": 1, "repeats": 2} | changes
    return Lines(path=str(path), heldout=None if heldout is None else str(heldout), **settings)


def texts(prompts):
    return [prompt.text for prompt in prompts]


@pytest.fixture
def file(tmp_path):
    """Write a file of that name, of text or bytes."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def split(file):
    """The texts that some lines are divided into."""

    def load(prompts, **changes):
        found = lines(file("prompts.txt", "\n".join(prompts)), **changes).load()
        return texts(found.train), texts(found.heldout)

    return load


def test_lines_are_prompts(file):
    train = file("train.txt", "a cat\n\n  ein Mädchen mit Äpfeln \r\nline\u2028separator")
    found = lines(train, file("heldout.txt", "\ufeffa dog")).load()
    assert texts(found.train) == ["a cat", "ein Mädchen mit Äpfeln", "line\u2028separator"]
    assert texts(found.heldout) == ["a dog"]


def test_a_share_is_held_out(split):
    train, heldout = split(NUMBERED)
    assert 70 < len(heldout) < 130  # 400 draws of 1/4 have a standard deviation of 9
    assert sorted(train + heldout) == sorted(NUMBERED)
    assert [text for text in NUMBERED if text in set(heldout)] == heldout
    assert [text for text in NUMBERED if text in set(train)] == train


def test_places_never_change():
    """By `printf 'a cat' | b2sum -l 48`: with other places, a run would train on what another holds out."""
    assert [round(place(text), 4) for text in ("a cat", "ein Äpfel", "")] == [
        0.5057,
        0.0738,
        0.8666,
    ]


@given(text=st.text(), other=st.text())
def test_a_place_is_a_texts_own(text, other):
    assert 0 <= place(text) < 1
    assert (place(text) == place(other)) == (text == other)


def test_added_lines_move_no_others(split):
    train, heldout = split(NUMBERED[:200])
    more, more_heldout = split(NUMBERED[:-201:-1] + NUMBERED[:200])
    assert set(train) < set(more)
    assert set(heldout) < set(more_heldout)


def test_a_larger_share_only_adds(split):
    held = [set(split(NUMBERED, heldout_share=share)[1]) for share in (0.05, 0.1, 0.5, 0.9)]
    assert held == sorted(held, key=len)
    assert all(a < b for a, b in pairwise(held))


def test_equal_texts_stay_apart_and_on_one_side(split):
    train, heldout = split(NUMBERED * 3)
    assert set(Counter(train).values()) == set(Counter(heldout).values()) == {3}
    assert not set(train) & set(heldout)


def test_what_a_file_holds_out_is_not_trained_on(file):
    train = file("train.txt", "a cat\na dog\na cat\na cow\na dog")
    found = lines(train, file("heldout.txt", "a dog\na dog\na horse")).load()
    assert texts(found.train) == ["a cat", "a cat", "a cow"]
    assert texts(found.heldout) == ["a dog", "a dog", "a horse"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", "holds no prompt; give one per line"),
        ("\n \n", "holds no prompt; give one per line"),
        ("Äpfel".encode("latin-1"), r"is not UTF-8 \(byte 0\); save it as UTF-8"),
        ("a cat\n \na dog!\na cow\na pig!", r"line 3: too loud \(1 more: line 5\)"),
        (
            "\n".join(f"{i}!" for i in range(9)),
            r"line 1: too loud \(8 more: line 2, 3, 4, 5, 6, \.\.\.\)",
        ),
        (None, r"cannot be read \(No such file or directory\); give a text file"),
    ],
)
@pytest.mark.parametrize("key", ["path", "heldout"])
def test_bad_files(tmp_path, file, key, content, line):
    bad = tmp_path / "bad.txt" if content is None else file("bad.txt", content)
    paths = {"path": file("good.txt", "a cat"), "heldout": file("other.txt", "a dog")} | {key: bad}
    with pytest.raises(ConfigError, match=rf"^data\.{key}={re.escape(str(bad))} {line}$"):
        lines(**paths, parse=quiet).load()


def quiet(line):
    require("!" not in line, "too loud")
    return Prompt(text=line)


def test_a_folder_is_not_a_prompt_file(tmp_path):
    with pytest.raises(ConfigError, match="Is a directory"):
        lines(tmp_path).load()


def test_a_side_may_not_be_empty(file, split):
    cats = file("cats.txt", "a cat\na cat")
    with pytest.raises(
        ConfigError,
        match=r"^data.path=.*cats.txt has no prompt that is not held out; give more, or",
    ):
        lines(cats, cats).load()
    assert place("a cat") > 0.5
    with pytest.raises(
        ConfigError,
        match=r"heldout_share=0.5 holds out none of the 2 prompts of data.path=.*; raise",
    ):
        lines(cats, heldout_share=0.5).load()
    with pytest.raises(
        ConfigError, match="has no prompt that is not held out; give more, or hold out fewer"
    ):
        lines(cats, heldout_share=0.6).load()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"prompts": 0}, "prompts=0 is not positive"),
        ({"repeats": 1}, "repeats=1 leaves nothing to compare in a group; give 2 or more"),
        ({"heldout_share": 0}, r"heldout_share=0 is outside \(0, 1\)"),
        ({"heldout_share": 1}, r"heldout_share=1 is outside \(0, 1\)"),
        ({"heldout_share": float("nan")}, r"heldout_share=nan is outside \(0, 1\)"),
    ],
)
def test_refusals(changes, line):
    with pytest.raises(ConfigError, match=line):
        lines("unread", **changes)


@pytest.mark.parametrize(
    ("name", "tags"), [("pickscore", {""}), ("ocr", {""}), ("geneval", GENEVAL)]
)
def test_shipped_samples_are_read_from_anywhere(name, tags, choice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = choice("data", name).load()
    assert (
        len(found.train) + len(found.heldout)
        == len({*texts(found.train), *texts(found.heldout)})
        == 60
    )
    assert {prompt.tag for prompt in found.train} == tags


def test_a_file_here_comes_before_a_shipped_one(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").mkdir()
    file("prompts/ocr_sample.txt", "my own")
    assert texts(lines("prompts/ocr_sample.txt", file("heldout.txt", "a dog")).load().train) == [
        "my own"
    ]


@pytest.mark.parametrize(
    ("name", "reward", "other"), [("ocr", "ocr", "geneval"), ("geneval", "geneval_coco", "ocr")]
)
def test_samples_suit_their_rewards(name, reward, other, choice):
    found, accepts = choice("data", name).load(), choice("reward", reward).accepts
    assert texts(found.accepted(accepts).train) == texts(found.train)
    assert texts(found.accepted(accepts).heldout) == texts(found.heldout)
    with pytest.raises(
        ConfigError,
        match=r"^none of the \d+ training prompts suits this reward; choose another data=",
    ):
        found.accepted(choice("reward", other).accepts)
