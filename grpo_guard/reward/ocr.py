"""Is the quoted text in the picture? Read by PP-OCRv6."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from onnxruntime import get_available_providers
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from grpo_guard.reward import Scorer, scored
from grpo_guard.reward._ocr_reader import Processes, reader
from grpo_guard.reward._ocr_reader import Read as ReadLines
from grpo_guard.reward.clip_formats import loading
from grpo_guard.types import Prompt, Rewards, component, require

Match = Literal["substring", "exact"]
Engine = Literal["onnxruntime", "onnxruntime_gpu", "torch"]
Read = Callable[[UInt8[np.ndarray, "H W 3"]], str]
TORCH_FILES = {
    "Det.model_path": "PP-OCRv6_det_small.pth",
    "Rec.model_path": "PP-OCRv6_rec_small.pth",
    "Rec.rec_keys_path": "ppocrv6_dict.txt",
}
_log = logging.getLogger(__name__)


@component
class OCR:
    """1 less the share of the quoted text that is misspelt.

    `match: substring` forgives whatever else is read, so that text spam pays; with `exact` it costs. `detect` looks for
    lines of text first, in pictures enlarged until their shorter side has `side` px; without it a picture is one line.
    Lines read with less than `confidence` are ignored. The `engine` is ONNX Runtime on the CPU, or on the run's GPU, or
    torch on the run's device, whose weights are files in the folder `model` (null: they are fetched). `workers` are
    processes of low priority that read a picture at a time on the CPU (null: one per core, divided among the ranks of
    the machine); with 0, and with other engines, this process reads one after another.
    """

    match: Match
    detect: bool
    side: int
    confidence: float
    workers: int | None
    engine: Engine = "onnxruntime"
    model: str | None = None
    name: str = "ocr"

    def __post_init__(self) -> None:
        require(
            self.side >= 32, f"side={self.side} is too small to find text in; give 32 px or more"
        )
        require(0 <= self.confidence <= 1, f"confidence={self.confidence} is outside [0, 1]")
        require(
            self.workers is None or self.workers >= 0,
            f"workers={self.workers} is negative; give null for one per core, or 0 to read in this process",
        )
        require(
            self.engine == "onnxruntime" or not self.workers,
            f"workers={self.workers} cannot read with engine={self.engine}, which is in this process; give null",
        )
        require(
            self.engine == "torch" or self.model is None,
            f"model={self.model} is for engine=torch; engine={self.engine} has its weights in rapidocr's wheel",
        )

    compares: ClassVar[bool] = False

    def accepts(self, prompt: Prompt) -> bool:
        """Prompts that quote a text."""
        return bool(quoted(prompt.text))

    def load(self, device: torch.device) -> Scorer:
        """The scorer; raises ConfigError where its engine cannot be had."""
        workers = (
            self.workers
            if self.workers is not None
            else cores()
            if self.engine == "onnxruntime"
            else 0
        )
        read, pool = self._reader(workers, device), ThreadPoolExecutor(workers or 1)

        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            readings = [pool.submit(read, picture) for picture in _pictures(images)]
            values = [
                self._value(reading, prompt)
                for reading, prompt in zip(readings, prompts, strict=True)
            ]
            return replace(
                scored(images, **{self.name: torch.tensor(values)}),
                notes=tuple(map(_note, readings)),
            )

        return score

    def _reader(self, workers: int, device: torch.device) -> Read:
        here = ENGINES[self.engine]
        lines = Processes(workers, self.detect, self.side).read if workers else here(self, device)
        return lambda picture: normal(
            "".join(line for line, sure in lines(picture) if sure >= self.confidence)
        )

    def _value(self, reading: Future[str], prompt: Prompt) -> float:
        error = reading.exception()
        if error is None:
            return similarity(reading.result(), quoted(prompt.text), self.match)
        _log.warning("OCR failed on a picture of %r: %s", prompt.text, error)
        return math.nan


def cores() -> int:
    """The cores of the machine for each of the ranks that torchrun has started there; at least one."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _on_cpu(ocr: OCR, device: torch.device) -> ReadLines:
    return reader(ocr.detect, ocr.side)


def _on_gpu(ocr: OCR, device: torch.device) -> ReadLines:
    """ONNX Runtime would go on with the CPU where it has no GPU: that is refused."""
    found = device.type == "cuda" and "CUDAExecutionProvider" in get_available_providers()
    require(
        found,
        "engine=onnxruntime_gpu needs a GPU and onnxruntime-gpu in place of onnxruntime; or engine=torch",
    )
    options = {"use_cuda": True, "cuda_ep_cfg.device_id": device.index or 0}
    return reader(
        ocr.detect,
        ocr.side,
        {f"EngineConfig.onnxruntime.{key}": option for key, option in options.items()},
    )


def _by_torch(ocr: OCR, device: torch.device) -> ReadLines:
    from rapidocr import EngineType
    from rapidocr.utils.download_file import DownloadFileException

    folder = Path(ocr.model) if ocr.model else None
    files = {key: str(folder / file) for key, file in TORCH_FILES.items()} if folder else {}
    engines = {f"{part}.engine_type": EngineType.TORCH for part in ("Det", "Rec")}
    place = {"use_cuda": device.type == "cuda", "cuda_ep_cfg.device_id": device.index or 0}
    placed = {f"EngineConfig.torch.{key}": option for key, option in place.items()}
    with loading("model", ocr.model or "null", ", ".join(TORCH_FILES.values())):
        try:
            return reader(ocr.detect, ocr.side, {**engines, **placed, **files})
        except DownloadFileException as error:
            raise OSError(str(error)) from error


ENGINES: Mapping[Engine, Callable[[OCR, torch.device], ReadLines]] = {
    "onnxruntime": _on_cpu,
    "onnxruntime_gpu": _on_gpu,
    "torch": _by_torch,
}
"""How this process reads."""


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
