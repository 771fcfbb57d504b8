"""OCR: the scoring rules, and PP-OCR on real renders."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_guard.reward.ocr import (
    OCR,
    _to_8_bit_bgr,
    find_quoted_text,
    normalize_text,
    similarity,
)
from grpo_guard.schema import ConfigError
from grpo_guard.types import Prompt
from grpo_guard.world import captions, render

CPU = torch.device("cpu")
SETTINGS = {"match": "substring", "detect": True, "side": 96, "confidence": 0.5, "workers": 0}


@pytest.mark.parametrize(
    ("read", "target", "substring", "exact"),
    [
        ("stop", "stop", 1, 1),
        ("stopstopstop", "stop", 1, 0),  # spam pays only as a substring
        ("stopit", "stop", 1, 0.5),
        ("stp", "stop", 0.75, 0.75),
        ("", "stop", 0, 0),
        ("qwertyuiop", "stop", 0, 0),  # never below 0
        ("lovee", "glove", 0.6, 0.6),
        ("op", "stop", 0.5, 0.5),
    ],
)
def test_rules(read, target, substring, exact):
    assert similarity(read, target, "substring") == pytest.approx(substring)
    assert similarity(read, target, "exact") == pytest.approx(exact)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ('a sign that says "Open Now"', "opennow"),
        ('"one" and "two"', "one"),
        ("no quotes", ""),
        ('an empty "" pair', ""),
        ('a lone " mark', ""),
        ('a 12" pizza box that says "HOT"', ""),
        ("it's 'single'", ""),
    ],
)
def test_target_is_the_first_quoted_text(text, target):
    assert find_quoted_text(text) == target
    assert OCR(**SETTINGS).accepts(Prompt(text=text)) == bool(target)


@pytest.mark.parametrize(
    ("read", "quoted"),
    [
        ("CAFÉ", "CAFE\u0301"),
        ("CAFE\u0301", "café"),
        ("DON'T", "DON’T"),
        ("DON’T", "don't"),
        ("rock ´n` roll", "ROCK 'N' ROLL"),
        ("STRASSE", "Straße"),
        ("ＯＰＥＮ", "open"),
        ("ﬁsh", "FISH"),
    ],
)
@pytest.mark.parametrize("match", ["substring", "exact"])
def test_texts_that_look_the_same_are_the_same(read, quoted, match):
    target = find_quoted_text(f'a sign that says "{quoted}"')
    assert similarity(normalize_text(read), target, match) == 1


@given(text=st.text())
def test_the_normal_form_is_its_own(text):
    assert normalize_text(normalize_text(text)) == normalize_text(text)


def test_a_perfect_picture_of_a_decomposed_text_scores_1(monkeypatch):
    """The engine returns composed letters and any apostrophe; prompts hold what users typed."""
    lines = [("CAFÉ", 0.9), ("DON’T", 0.9)]
    monkeypatch.setattr("grpo_guard.reward.ocr.load_reader", lambda *_: lambda picture: lines)
    prompts = [Prompt(text='the words "CAFE\u0301 DON\'T"')]
    rewards = OCR(**{**SETTINGS, "match": "exact"}).load(CPU)(torch.ones(1, 3, 8, 8), prompts)
    assert rewards.total.tolist() == [1]


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(3)
    prompts = captions.draw_captions(rng, 20, captions.all_prompts(("words",), heldout=False))
    return prompts, torch.from_numpy(render.render(prompts, rng)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("match", ["substring", "exact"])
def test_real_words_are_read(drawn, match):
    prompts, images = drawn
    score = OCR(**{**SETTINGS, "match": match}).load(CPU)
    assert (score(images, prompts).total == 1).float().mean() >= 0.9
    others = [Prompt(text='the word "xylyl"')] * len(prompts)
    assert score(images, others).total.mean() < 0.3
    assert score(torch.ones_like(images), prompts).total.sum() == 0


def test_notes_say_what_was_read(drawn):
    prompts, images = drawn
    rewards = OCR(**SETTINGS).load(CPU)(images, [Prompt(text='the word "xylyl"')] * len(prompts))
    assert (
        sum(
            note == (f'read "{find_quoted_text(p.text)}"',)
            for note, p in zip(rewards.notes, prompts, strict=True)
        )
        >= 18
    )


def test_recognition_alone_reads_most_words(drawn):
    prompts, images = drawn
    assert OCR(**{**SETTINGS, "detect": False}).load(CPU)(images, prompts).total.mean() > 0.8


def test_uncertain_lines_are_ignored(drawn):
    prompts, images = drawn
    assert (
        OCR(**{**SETTINGS, "confidence": 1.0}).load(CPU)(images[:4], prompts[:4]).total.sum() == 0
    )


def test_a_picture_that_cannot_be_read_fails_alone(drawn, monkeypatch, caplog):
    prompts, images = drawn

    def reader(self, workers, device):
        return lambda picture: 1 / 0 if picture.mean() > 254 else "nothing"

    monkeypatch.setattr(OCR, "_load_text_reader", reader)
    images = torch.cat([images[:2], torch.ones_like(images[:1])])
    with caplog.at_level(logging.WARNING):
        scores = OCR(**SETTINGS, name="read").load(CPU)(images, prompts[:3])
    assert scores.failed.tolist() == [False, False, True]
    assert scores.parts["read"].isnan().tolist() == [False, False, True]
    assert scores.notes == (('read "nothing"',), ('read "nothing"',), ("could not be read",))
    assert "division by zero" in caplog.text


def test_an_image_with_nan_fails(drawn):
    prompts, images = drawn
    images = images[:2].clone()
    images[1, 2, 5, 5] = torch.nan
    assert OCR(**SETTINGS).load(CPU)(images, prompts[:2]).failed.tolist() == [False, True]


def test_it_is_quiet(drawn, capfd):
    OCR(**SETTINGS).load(CPU)(drawn[1][:1], drawn[0][:1])
    assert capfd.readouterr() == ("", "")
    assert not logging.getLogger("RapidOCR").isEnabledFor(logging.ERROR)


@pytest.mark.parametrize("change", [{"side": 8}, {"confidence": 1.5}, {"workers": -1}])
def test_bad_settings_are_refused(change):
    ((key, value),) = change.items()
    with pytest.raises(ConfigError, match=f"{key}={value}"):
        OCR(**{**SETTINGS, **change})


def test_the_reader_gets_8_bit_bgr():
    red, blue = torch.zeros(2, 3, 4, 5)
    red[0] = 1.0
    blue[2] = 0.5
    pictures = _to_8_bit_bgr(torch.stack([red, blue]))
    assert pictures.dtype == np.uint8
    assert pictures.shape == (2, 4, 5, 3)
    assert pictures[0, 0, 0].tolist() == [0, 0, 255]
    assert pictures[1, 0, 0].tolist() == [128, 0, 0]
