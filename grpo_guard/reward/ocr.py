"""Is the quoted text in the picture? Read by PP-OCRv6, on the CPU."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from grpo_guard.reader import Processes, reader
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
    Lines read with less than `confidence` are ignored. `workers` are processes of low priority that read a picture at a
    time (null: one per core, divided among the ranks of the machine); with 0, this process reads one after another.
    """

    match: Match
    detect: bool
    side: int
    confidence: float
    workers: int | None
    name: str = "ocr"

    def __post_init__(self) -> None:
        require(self.side >= 32, f"side={self.side} is too small to find text in; give 32 px or more")
        require(0 <= self.confidence <= 1, f"confidence={self.confidence} is outside [0, 1]")
        require(
            self.workers is None or self.workers >= 0,
            f"workers={self.workers} is negative; give null for one per core, or 0 to read in this process",
        )

    compares: ClassVar[bool] = False

    def accepts(self, prompt: Prompt) -> bool:
        """Prompts that quote a text."""
        return bool(quoted(prompt.text))

    def load(self, device: torch.device) -> Scorer:
        """The scorer; whatever the device, it reads on the CPU."""
        workers = cores() if self.workers is None else self.workers
        read, pool = self._reader(workers), ThreadPoolExecutor(workers or 1)

        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            readings = [pool.submit(read, picture) for picture in _pictures(images)]
            values = [self._value(reading, prompt) for reading, prompt in zip(readings, prompts, strict=True)]
            return replace(scored(images, **{self.name: torch.tensor(values)}), notes=tuple(map(_note, readings)))

        return score

    def _reader(self, workers: int) -> Read:
        lines = Processes(workers, self.detect, self.side).read if workers else reader(self.detect, self.side)
        return lambda picture: normal("".join(line for line, sure in lines(picture) if sure >= self.confidence))

    def _value(self, reading: Future[str], prompt: Prompt) -> float:
        error = reading.exception()
        if error is None:
            return similarity(reading.result(), quoted(prompt.text), self.match)
        _log.warning("OCR failed on a picture of %r: %s", prompt.text, error)
        return math.nan


def cores() -> int:
    """The cores of the machine for each of the ranks that torchrun has started there; at least one."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _note(reading: Future[str]) -> tuple[str, ...]:
    return ("could not be read",) if reading.exception() else (f'read "{reading.result()}"',)


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
