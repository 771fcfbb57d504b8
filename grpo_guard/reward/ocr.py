"""Is the quoted text in the picture? Read by PP-OCRv6 (rapidocr, whose wheel holds the weights)."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from grpo_guard.reward import Scorer, scored
from grpo_guard.types import Prompt, Rewards, component, require

Match = Literal["substring", "exact"]
Read = Callable[[UInt8[np.ndarray, "H W 3"]], str]
_log = logging.getLogger(__name__)


@component
class OCR:
    """1 less the share of the quoted text that is misspelt.

    `match: substring` forgives whatever else is read, so that text spam pays; with `exact` it costs. `detect` looks for
    lines of text first, in pictures enlarged until their shorter side has `side` px; without it a picture is one line.
    Lines read with less than `confidence` are ignored. `threads: null` is one per core; each reads one picture.
    """

    match: Match
    detect: bool
    side: int
    confidence: float
    threads: int | None
    name: str = "ocr"

    def __post_init__(self) -> None:
        require(self.side >= 32, f"side={self.side} is too small to find text in; give 32 px or more")
        require(0 <= self.confidence <= 1, f"confidence={self.confidence} is outside [0, 1]")
        require(self.threads is None or self.threads > 0, f"threads={self.threads} is not positive; null: all cores")

    def accepts(self, prompt: Prompt) -> bool:
        """Prompts that quote a text."""
        return bool(quoted(prompt.text))

    def load(self, device: torch.device) -> Scorer:
        """The scorer; whatever the device, it reads on the CPU."""
        read, pool = self._reader(), ThreadPoolExecutor(self.threads or os.cpu_count())

        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            readings = [pool.submit(read, picture) for picture in _pictures(images)]
            values = [self._value(reading, prompt) for reading, prompt in zip(readings, prompts, strict=True)]
            return scored(images, **{self.name: torch.tensor(values)})

        return score

    def _reader(self) -> Read:
        from rapidocr import RapidOCR

        engine = RapidOCR(params=_settings(self.detect, self.side))

        def read(picture: UInt8[np.ndarray, "H W 3"]) -> str:
            found: Any = engine(picture)
            lines = zip(found.txts or (), found.scores or (), strict=True)
            return normal("".join(line for line, sure in lines if sure >= self.confidence))

        read(np.full((64, 64, 3), 255, np.uint8))  # loads the models now
        return read

    def _value(self, reading: Future[str], prompt: Prompt) -> float:
        error = reading.exception()
        if error is None:
            return similarity(reading.result(), quoted(prompt.text), self.match)
        _log.warning("OCR failed on a picture of %r: %s", prompt.text, error)
        return math.nan


def quoted(text: str) -> str:
    """The text in the first pair of double quotes, in normal form; empty where there is none."""
    found = re.search(r'"([^"]*)"', text)
    return normal(found[1]) if found else ""


def normal(text: str) -> str:
    """Lower case, without spaces."""
    return "".join(text.split()).lower()


def similarity(read: str, target: str, match: Match) -> float:
    """`1 - min(d, n) / n`: d the Levenshtein distance, or 0 where a substring will do, n the target's length."""
    if match == "substring" and target in read:
        return 1.0
    return 1 - min(Levenshtein.distance(read, target), len(target)) / len(target)


def _pictures(images: Float[Tensor, "B 3 H W"]) -> UInt8[np.ndarray, "B H W 3"]:
    """8-bit BGR pictures."""
    levels = images.detach().float().nan_to_num().clamp(0, 1).mul(255).round().byte()
    return levels.flip(1).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _settings(detect: bool, side: int) -> dict[str, object]:
    """rapidocr's options; recognition is padded to no more than the line's own width."""
    engine = "EngineConfig.onnxruntime"
    return {
        "Global.log_level": "critical",
        "Global.text_score": 0.0,
        "Global.use_cls": False,
        "Global.use_det": detect,
        "Det.limit_side_len": side,
        "Rec.rec_img_shape": [3, 48, 48],
        f"{engine}.intra_op_num_threads": 1,
        f"{engine}.inter_op_num_threads": 1,
    }
