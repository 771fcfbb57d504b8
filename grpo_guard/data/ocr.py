"""Reads prompts that quote the text that an image must spell."""

from __future__ import annotations

import re

from grpo_guard.data.prompts import read_text
from grpo_guard.schema import require
from grpo_guard.types import Prompt


def parse_ocr(line: str) -> Prompt:
    """Check that the first quoted text is in straight double quotes, as the OCR reward reads it.

    The line may also be JSON whose `prompt` is such a text. Raises ConfigError if the text is not
    quoted so, if it is blank, or if the number of straight double quotes is odd.
    """
    text = read_text(line)
    require(
        text.count('"') % 2 == 0,
        f"there are {text.count(chr(34))} double quotes, so it is not clear what they enclose;"
        ' write inches as in 12-inch, and what the image must spell as in "open"',
    )
    quoted = re.match(r'[^"“”„]*"[^"]*[^"\s][^"]*"', text)
    require(
        quoted is not None,
        "the first quoted text is missing, blank or not in straight double quotes;"
        ' write what the image must spell as in "open"',
    )
    return Prompt(text=text)
