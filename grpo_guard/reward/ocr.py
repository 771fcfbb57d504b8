"""Is the quoted text of a prompt written in the image? Text is read with PP-OCRv6."""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from onnxruntime import get_available_providers
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from grpo_guard.parallel.cores import cores_per_process
from grpo_guard.pixels import to_8_bit
from grpo_guard.reward import Scorer, make_rewards
from grpo_guard.reward._ocr_reader import ReaderPool, ReadPicture, load_reader
from grpo_guard.reward.clip_formats import loading
from grpo_guard.schema import Advice, AtMost, Name, NonNegativeInt, Rule, Share, component, require
from grpo_guard.types import Prompt, Rewards

Match = Literal["substring", "exact"]
Engine = Literal["onnxruntime", "onnxruntime_gpu", "torch"]
TORCH_FILES = {
    "Det.model_path": "PP-OCRv6_det_small.pth",
    "Rec.model_path": "PP-OCRv6_rec_small.pth",
    "Rec.rec_keys_path": "ppocrv6_dict.txt",
}
"""Files in the folder `model` of the torch engine, by rapidocr's option for each."""
MOST_WORKERS = 32
"""The most processes that are started unless more are set; together they hold some 5 GB."""
_APOSTROPHES = dict.fromkeys(map(ord, "’‘‛ʼʹ′`´＇"), "'")
"""Characters that stand for an apostrophe, by code point."""
_log = logging.getLogger(__name__)


@component
class OCR:
    """Score how well the text in an image spells the quoted text of its prompt, from 0 to 1.

    The score is 1 minus the share of the quoted text that is misspelt. Case, spaces and the way in
    which accents and apostrophes are encoded do not matter. The notes say what was read.
    """

    meanings: ClassVar[Mapping[str, str]] = {
        "{name}": "share of the quoted text that is spelt right in the picture (match: {match})",
    }
    match: Match
    """substring: other text in the image does no harm, so a policy may learn to write too much.
    exact: other text counts as misspelt."""
    detect: bool
    """True: look for lines of text in the image first. False: the image is one line of text."""
    side: Annotated[
        int,
        Rule(lambda x: x >= 32, "is too small to find text in", "give 32 px or more"),
        AtMost(16_384),
    ]
    """Length in px, 32 or more, that the shorter side of an image is enlarged to before lines are
    looked for."""
    confidence: Share
    """Lines that were read with less confidence than this, from 0 to 1, are ignored."""
    workers: Annotated[
        NonNegativeInt | None,
        AtMost(1024),
        Advice("give null for one per core, or 0 for none"),
    ]
    """Number of processes of low priority that read one image at a time on the CPU, 150 MB each.

    null: one per core that the run may use with engine=onnxruntime, divided among its processes on
    the machine, and 32 at most; else 0.
    0: this process reads one image after another; the other engines allow only that.
    """
    engine: Engine = "onnxruntime"
    """onnxruntime: on the CPU. onnxruntime_gpu: on the run's GPU, with the package onnxruntime-gpu.
    torch: on the run's device."""
    model: str | None = None
    """Folder with the weights of engine=torch; null downloads them. Must be null with the others,
    whose weights are in rapidocr's wheel."""
    name: Name = "ocr"
    """Name of the score in the metrics."""

    compares: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(
            self.engine == "onnxruntime" or not self.workers,
            f"workers={self.workers} cannot be used with engine={self.engine}, which reads in this"
            " process; give null",
        )
        require(
            self.engine == "torch" or self.model is None,
            f"model={self.model} is for engine=torch; the weights of engine={self.engine} are in"
            " rapidocr's wheel, so give null",
        )

    def accepts(self, prompt: Prompt) -> bool:
        """Accept prompts that quote a text, with an even number of double quotes."""
        return bool(find_quoted_text(prompt.text))

    weight_bytes: ClassVar[int] = 0
    """Always 0: PP-OCR's weights are a few megabytes, and stay on the CPU by default."""

    def load(self, device: torch.device) -> Scorer:
        """Start the readers and return the scorer.

        Raises ConfigError if the engine or its weights are missing.
        """
        workers = self._worker_count()
        read = self._load_text_reader(workers, device)
        threads = ThreadPoolExecutor(workers or 1)

        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            readings = [threads.submit(read, picture) for picture in _to_8_bit_bgr(images)]
            scores = torch.tensor(
                [self._score_text(r, prompt) for r, prompt in zip(readings, prompts, strict=True)]
            )
            notes = tuple(_describe_reading(reading) for reading in readings)
            return replace(make_rewards(images, **{self.name: scores}), notes=notes)

        return score

    def _worker_count(self) -> int:
        if self.workers is not None:
            return self.workers
        return min(cores_per_process(), MOST_WORKERS) if self.engine == "onnxruntime" else 0

    def _load_text_reader(
        self, workers: int, device: torch.device
    ) -> Callable[[UInt8[np.ndarray, "H W 3"]], str]:
        """Return a function that reads the text of a picture, in normal form."""
        read: ReadPicture
        if workers:
            read = ReaderPool(workers, self.detect, self.side).read
        else:
            read = READERS[self.engine](self, device)

        def read_text(picture: UInt8[np.ndarray, "H W 3"]) -> str:
            lines = read(picture)
            text = "".join(line for line, sureness in lines if sureness >= self.confidence)
            return normalize_text(text)

        return read_text

    def _score_text(self, reading: Future[str], prompt: Prompt) -> float:
        error = reading.exception()
        if error is None:
            return similarity(reading.result(), find_quoted_text(prompt.text), self.match)
        _log.warning("OCR failed on a picture of %r: %s", prompt.text, error)
        return math.nan


def _load_onnx_cpu_reader(ocr: OCR, device: torch.device) -> ReadPicture:
    return load_reader(ocr.detect, ocr.side)


def _load_onnx_gpu_reader(ocr: OCR, device: torch.device) -> ReadPicture:
    # without a GPU, ONNX Runtime would silently use the CPU
    require(
        device.type == "cuda" and "CUDAExecutionProvider" in get_available_providers(),
        "engine=onnxruntime_gpu needs a GPU and onnxruntime-gpu in place of onnxruntime;"
        " or give engine=torch",
    )
    options = {"use_cuda": True, "cuda_ep_cfg.device_id": device.index or 0}
    engine = {f"EngineConfig.onnxruntime.{key}": value for key, value in options.items()}
    return load_reader(ocr.detect, ocr.side, engine)


def _load_torch_reader(ocr: OCR, device: torch.device) -> ReadPicture:
    from rapidocr import EngineType
    from rapidocr.utils.download_file import DownloadFileException

    options = {"use_cuda": device.type == "cuda", "cuda_ep_cfg.device_id": device.index or 0}
    engine: dict[str, object] = {
        **{f"{part}.engine_type": EngineType.TORCH for part in ("Det", "Rec")},
        **{f"EngineConfig.torch.{key}": value for key, value in options.items()},
    }
    if ocr.model:
        engine |= {key: str(Path(ocr.model) / file) for key, file in TORCH_FILES.items()}
    with loading("model", ocr.model or "null", ", ".join(TORCH_FILES.values())):
        try:
            return load_reader(ocr.detect, ocr.side, engine)
        except DownloadFileException as error:
            # rapidocr's own error is no OSError, which `loading` expects
            raise OSError(str(error)) from error


READERS: Mapping[Engine, Callable[[OCR, torch.device], ReadPicture]] = {
    "onnxruntime": _load_onnx_cpu_reader,
    "onnxruntime_gpu": _load_onnx_gpu_reader,
    "torch": _load_torch_reader,
}
"""How each engine is loaded into this process."""


def _describe_reading(reading: Future[str]) -> tuple[str, ...]:
    return ("could not be read",) if reading.exception() else (f'read "{reading.result()}"',)


def find_quoted_text(text: str) -> str:
    """Return the text in the first pair of double quotes, in normal form; "" if there is none.

    There is none either if the number of quotes is odd: one of them may stand for inches, and then
    it is not clear what the others enclose.
    """
    match = re.search(r'"([^"]*)"', text)
    return normalize_text(match[1]) if match and text.count('"') % 2 == 0 else ""


def normalize_text(text: str) -> str:
    """Return a text in Unicode's form NFKC, without case and spaces, and with one apostrophe.

    Texts that look the same are then equal, whether their accents are composed or not.
    """
    # Before NFKC, which turns some apostrophes into an accent on a space.
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES))
    # Folding case may leave an accent apart from its letter.
    return "".join(unicodedata.normalize("NFKC", text.casefold()).split())


def similarity(text: str, target: str, match: Match) -> float:
    """Return `1 - min(d, n) / n`, with the Levenshtein distance d and the target's length n.

    With match="substring", d is 0 if the text contains the target.
    """
    if match == "substring" and target in text:
        return 1.0
    return 1 - min(Levenshtein.distance(text, target), len(target)) / len(target)


def _to_8_bit_bgr(images: Float[Tensor, "B 3 H W"]) -> UInt8[np.ndarray, "B H W 3"]:
    return to_8_bit(images).flip(1).permute(0, 2, 3, 1).contiguous().cpu().numpy()
