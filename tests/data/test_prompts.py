"""Prompt files: what is read, what is held out, and what is refused."""

import json
import logging
import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_guard.data.geneval import parse_geneval
from grpo_guard.data.ocr import parse_ocr
from grpo_guard.data.prompts import PromptFile, parse_plain, unit_hash
from grpo_guard.messages import warn_once
from grpo_guard.schema import ConfigError, require
from grpo_guard.types import Prompt

NUMBERED = [f"prompt {i}" for i in range(400)]
GENEVAL = {"single_object", "two_object", "counting", "colors", "position", "color_attr"}


def prompt_file(path, heldout=None, **changes):
    settings = {"heldout_share": 0.25, "parse": parse_plain, "prompts": 1, "repeats": 2} | changes
    heldout = None if heldout is None else str(heldout)
    return PromptFile(path=str(path), heldout=heldout, **settings)


def texts(prompts):
    return [prompt.text for prompt in prompts]


@pytest.fixture
def file(tmp_path):
    """Return a function that writes a file from text or bytes."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def split(file):
    """Return a function that writes lines to a file and loads the two sides of its split."""

    def load(prompts, **changes):
        loaded = prompt_file(file("prompts.txt", "\n".join(prompts)), **changes).load()
        return texts(loaded.train), texts(loaded.heldout)

    return load


def test_lines_are_prompts(file):
    train = file("train.txt", "a cat\n\n  ein Mädchen mit Äpfeln \r\nline\u2028separator")
    loaded = prompt_file(train, file("heldout.txt", "\ufeffa dog")).load()
    assert texts(loaded.train) == ["a cat", "ein Mädchen mit Äpfeln", "line\u2028separator"]
    assert texts(loaded.heldout) == ["a dog"]


def test_a_share_is_held_out(split):
    train, heldout = split(NUMBERED)
    assert 70 < len(heldout) < 130  # 400 draws of 1/4 have a standard deviation of 9
    assert sorted(train + heldout) == sorted(NUMBERED)
    assert [text for text in NUMBERED if text in set(heldout)] == heldout
    assert [text for text in NUMBERED if text in set(train)] == train


def test_the_hash_never_changes():
    """The values are those of `printf 'a cat' | b2sum -l 48`, divided by 2^48."""
    assert [round(unit_hash(text), 4) for text in ("a cat", "ein Äpfel", "")] == [
        0.5057,
        0.0738,
        0.8666,
    ]


@given(text=st.text(), other=st.text())
def test_different_texts_have_different_hashes(text, other):
    assert 0 <= unit_hash(text) < 1
    assert (unit_hash(text) == unit_hash(other)) == (text == other)


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


def test_a_held_out_file_is_not_trained_on(file):
    train = file("train.txt", "a cat\na dog\na cat\na cow\na dog")
    loaded = prompt_file(train, file("heldout.txt", "a dog\na dog\na horse")).load()
    assert texts(loaded.train) == ["a cat", "a cat", "a cow"]
    assert texts(loaded.heldout) == ["a dog", "a dog", "a horse"]


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
        prompt_file(**paths, parse=quiet).load()


TABLE = r"is a table \(line 1: .*\); give one prompt per line, without a header, or JSON lines with"
UNFIT = {
    "a header": ("prompts.txt", "caption,id\na red circle,1\n", TABLE),
    "a header with tabs": ("prompts.txt", '\n"Prompt"\tseed\na cat\t1\n', TABLE.replace("1", "2")),
    "a heading": ("prompts.txt", "prompt\na cat\n", TABLE),
    "a table without a header": ("cats.CSV", "a cat,1\n", TABLE),
    "a list": (
        "a.json",
        '[\n{"prompt": "a cat"}\n]',
        r"line 1: the line is part of a JSON list; give",
    ),
    "a list in a line": (
        "a.json",
        '[{"prompt": "a cat"}]',
        r"line 1: the line is part of a JSON list",
    ),
    "cut off": (
        "a.jsonl",
        '{"prompt": "a cat',
        r"line 1: the line is not JSON \(Unterminated string",
    ),
    "no prompt": (
        "a.jsonl",
        '{"text": "a cat"}',
        r"line 1: prompt=None is not a text; give a string",
    ),
    "a number": ("a.jsonl", '{"prompt": 7}', r"line 1: prompt=7 is not a text; give a string that"),
    "half a character": (
        "a.jsonl",
        r'{"prompt": "\ud800"}',
        r"line 1: .* half of a surrogate pair",
    ),
    "UTF-16": ("a.txt", "a cat".encode("utf-16-le"), r"is not UTF-8 text \(it holds zero bytes\)"),
}


@pytest.mark.parametrize("case", UNFIT)
@pytest.mark.parametrize("parse", [parse_plain, parse_ocr])
def test_what_is_no_list_of_prompts_is_refused(file, case, parse):
    name, content, line = UNFIT[case]
    path = file(name, content)
    with pytest.raises(ConfigError, match=rf"^data\.path={re.escape(str(path))} {line}"):
        prompt_file(path, parse=parse).load()


def test_json_lines_hold_prompts(file, caplog):
    """Other keys are ignored with a line; the text between quotes is that of the prompt."""
    warn_once.cache_clear()
    path = file(
        "prompts.jsonl",
        '{"prompt": "a red circle", "negative_prompt": "blurry"}\n'
        '{"prompt": " three green triangles ", "negative_prompt": "blurry"}\n'
        'the word "SUN"\n{"prompt": "the word \\"MOON\\""}\n',
    )
    loaded = prompt_file(path, file("heldout.txt", "a dog"))
    assert texts(loaded.load().train) == [
        "a red circle",
        "three green triangles",
        'the word "SUN"',
        'the word "MOON"',
    ]
    (line,) = caplog.messages
    assert line == "the key 'negative_prompt' of JSON prompts is ignored; only `prompt` is read"
    assert parse_ocr('{"prompt": "the word \\"MOON\\""}').text == 'the word "MOON"'


def test_prompts_that_do_not_suit_are_counted_in_one_line(file, caplog):
    warn_once.cache_clear()
    split = prompt_file(file("a.txt", "a cat\na dog\na cow"), file("b.txt", "an owl")).load()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            split.select(lambda prompt: "o" in prompt.text)
            split.select(lambda prompt: True)
    assert caplog.messages == [
        f"{split.files}: 2 of 3 training prompts suit the reward (first that does not: 'a cat')"
    ]


@settings(max_examples=300)
@given(
    content=st.binary(max_size=40)
    | st.text(st.sampled_from('{}[]":,\\ud80prompt\n\t\0\ufeff'), max_size=40).map(str.encode)
    | st.dictionaries(st.sampled_from(["prompt", "include"]), st.text(max_size=3) | st.none()).map(
        lambda entry: json.dumps(entry).encode()
    ),
    parse=st.sampled_from([parse_plain, parse_ocr, parse_geneval]),
)
def test_any_file_is_read_or_refused(tmp_path_factory, content, parse):
    """A refusal is one line; every prompt that is read can be hashed, encoded and written."""
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    refusal = ""
    prompts = ()
    try:
        loaded = prompt_file(path, heldout_share=0.5, parse=parse).load()
        prompts = (*loaded.train, *loaded.heldout)
    except ConfigError as error:
        refusal = str(error)
    assert refusal.isprintable()
    assert bool(refusal) != bool(prompts)
    for prompt in prompts:
        assert prompt.text == prompt.text.strip() != ""
        assert 0 <= unit_hash(prompt.text) < 1


def quiet(line):
    require("!" not in line, "too loud")
    return Prompt(text=line)


def test_a_folder_is_not_a_prompt_file(tmp_path):
    with pytest.raises(ConfigError, match="Is a directory"):
        prompt_file(tmp_path).load()


def test_a_side_may_not_be_empty(file, split):
    cats = file("cats.txt", "a cat\na cat")
    with pytest.raises(
        ConfigError,
        match=r"^data.path=.*cats.txt has only prompts that are held out; add prompts, or",
    ):
        prompt_file(cats, cats).load()
    assert unit_hash("a cat") > 0.5
    with pytest.raises(
        ConfigError,
        match=r"heldout_share=0.5 holds out none of the 2 prompts of data.path=.*; raise it",
    ):
        prompt_file(cats, heldout_share=0.5).load()
    with pytest.raises(
        ConfigError, match="has only prompts that are held out; add prompts, or hold out"
    ):
        prompt_file(cats, heldout_share=0.6).load()


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
        prompt_file("unread", **changes)


@pytest.mark.parametrize(
    ("name", "tags"), [("pickscore", {""}), ("ocr", {""}), ("geneval", GENEVAL)]
)
def test_shipped_samples_are_read_from_anywhere(name, tags, choice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = choice("data", name).load()
    assert (
        len(loaded.train) + len(loaded.heldout)
        == len({*texts(loaded.train), *texts(loaded.heldout)})
        == 60
    )
    assert {prompt.tag for prompt in loaded.train} == tags


def test_a_shipped_sample_is_called_one(caplog):
    warn_once.cache_clear()
    for _ in range(2):
        prompt_file("prompts/ocr_sample.txt", None).load()
    assert caplog.messages == [
        "data.path=prompts/ocr_sample.txt is a sample for a first try; give a file of your own"
    ]


def test_a_file_here_comes_before_a_shipped_one(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").mkdir()
    file("prompts/ocr_sample.txt", "my own")
    assert texts(
        prompt_file("prompts/ocr_sample.txt", file("heldout.txt", "a dog")).load().train
    ) == ["my own"]


@pytest.mark.parametrize(
    ("name", "reward", "other"), [("ocr", "ocr", "geneval"), ("geneval", "geneval_coco", "ocr")]
)
def test_samples_suit_their_rewards(name, reward, other, choice):
    loaded, accepts = choice("data", name).load(), choice("reward", reward).accepts
    assert texts(loaded.select(accepts).train) == texts(loaded.train)
    assert texts(loaded.select(accepts).heldout) == texts(loaded.heldout)
    with pytest.raises(
        ConfigError,
        match=r"^none of the \d+ training prompts suits this reward; choose another data=",
    ):
        loaded.select(choice("reward", other).accepts)
