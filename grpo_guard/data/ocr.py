"""Prompts that quote the text an image must spell."""

from __future__ import annotations

import re

from grpo_guard.types import Prompt, require


def parse(line: str) -> Prompt:
    """A prompt whose first quoted text is in straight double quotes, as the OCR reward reads it."""
    spelled = re.match(r'[^"“”„]*"[^"]*[^"\s][^"]*"', line)
    require(
        spelled is not None,
        'no text in a first pair of straight double quotes; put what the image must spell there, as in "open"',
    )
    return Prompt(text=line)
