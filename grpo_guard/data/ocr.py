"""Reads prompts that quote the text that an image must spell."""

from __future__ import annotations

import re

from grpo_guard.schema import require
from grpo_guard.types import Prompt


def parse_ocr(line: str) -> Prompt:
    """Check that the first quoted text is in straight double quotes, as the OCR reward reads it.

    Raises ConfigError if it is not, or if it is blank.
    """
    quoted = re.match(r'[^"“”„]*"[^"]*[^"\s][^"]*"', line)
    require(
        quoted is not None,
        "the first quoted text is missing, blank or not in straight double quotes;"
        ' write what the image must spell as in "open"',
    )
    return Prompt(text=line)
