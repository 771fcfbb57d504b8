"""Prompts that quote what an image must spell."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_guard.data.ocr import parse_ocr
from grpo_guard.data.prompts import PromptFile
from grpo_guard.reward.ocr import OCR, find_quoted_text
from grpo_guard.schema import ConfigError
from grpo_guard.types import Prompt

REFUSAL = (
    "the first quoted text is missing, blank or not in straight double quotes;"
    ' write what the image must spell as in "open"'
)
READER = OCR(match="exact", detect=False, side=64, confidence=0.5, workers=0)


@pytest.mark.parametrize(
    ("line", "target"),
    [
        ('a sign that says "Open Late"', "openlate"),
        ('"7"', "7"),
        ('a mug with "tea" beside one with "coffee"', "tea"),
        ('the baker’s board says "two loaves" near “Rosa’s”', "twoloaves"),
        ('a card with "“hello”" on it', "“hello”"),
    ],
)
def test_the_first_quoted_text_is_the_target(line, target):
    prompt = parse_ocr(line)
    assert (prompt.text, prompt.tag, prompt.include) == (line, "", ())
    assert find_quoted_text(prompt.text) == target


@pytest.mark.parametrize(
    "line",
    [
        "a sign",
        "a sign that says 'open'",
        "a sign that says “open”",
        'an empty sign "" beside "open"',
        'a sign that says " "',
        'a shop called “Rosa’s” with a 5" by 7" sign',
    ],
)
def test_lines_without_a_target_are_refused(line):
    with pytest.raises(ConfigError) as refusal:
        parse_ocr(line)
    assert str(refusal.value) == REFUSAL


@pytest.mark.parametrize(
    "line", ['a 7" record', 'a 12" pizza box that says "HOT"', '"a" and "b" and "']
)
def test_an_odd_number_of_quotes_is_refused(line):
    with pytest.raises(
        ConfigError, match=rf"^there are {line.count(chr(34))} double quotes, so it"
    ):
        parse_ocr(line)
    assert not READER.accepts(Prompt(text=line))


@given(st.text(alphabet="\"“”„' \tab\u00a0", max_size=12).map(str.strip))
def test_what_is_read_is_what_the_reward_accepts(line):
    """A typographic quote before the first straight one is the exception.

    It makes unclear which text is meant, so the line is refused.
    """
    clear = not set(line.partition('"')[0]) & set("“”„")
    try:
        assert READER.accepts(parse_ocr(line))
        assert clear
    except ConfigError:
        assert not (clear and find_quoted_text(line))


def test_refused_lines_are_numbered(tmp_path):
    path = tmp_path / "signs.txt"
    path.write_text('a sign "a"\na sign\n\na sign "b"\nno sign\n“c”\n', encoding="utf-8")
    signs = PromptFile(
        path=str(path), heldout=None, heldout_share=0.5, parse=parse_ocr, prompts=1, repeats=2
    )
    with pytest.raises(ConfigError) as refusal:
        signs.load()
    assert str(refusal.value) == f"data.path={path} line 2: {REFUSAL} (2 more: line 5, 6)"
