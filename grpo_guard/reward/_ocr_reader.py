"""Read the lines of text in a picture with PP-OCRv6, in this process or in processes of their own.

PP-OCRv6 is run by rapidocr, whose wheel holds the weights. A reader process is this file run as a
script: it takes pictures from stdin and writes their lines to stdout, both pickled. It ends when
its stdin closes, which also happens when its parent is killed. This file imports neither torch nor
grpo_guard, so that a reader process is small and starts fast.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8

TextLines = list[tuple[str, float]]
"""The lines of text in a picture, each with its confidence from 0 to 1."""
ReadPicture = Callable[[UInt8[np.ndarray, "H W 3"]], TextLines]
"""An 8-bit BGR picture -> its lines of text."""
EngineOptions = Mapping[str, object]
"""Options of rapidocr for the library that runs the networks."""
ONE_CORE: EngineOptions = {
    f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")
}
"""ONNX Runtime on one core, with the weights in the wheel."""
NICENESS = 5
"""Added to the niceness of reader processes, so that training goes first on the cores."""
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1"
)
"""Environment that keeps the libraries of a reader process on one core."""
BLANK_PICTURE = np.full((64, 64, 3), 255, np.uint8)


class ProcessEnded(RuntimeError):
    """A reader process has ended."""


class ReadFailed(RuntimeError):
    """A reader process could not read a picture; the message is the process's own error."""


def load_reader(detect: bool, side: int, engine: EngineOptions = ONE_CORE) -> ReadPicture:
    """Load the networks into this process and return a function that reads one picture at a time.

    `detect` looks for lines of text first; without it, a picture is one line. `side` is the length
    in px that the shorter side of a picture is enlarged to before lines are looked for.
    """
    from rapidocr import RapidOCR

    ocr = RapidOCR(params={**_rapidocr_settings(detect, side), **engine})

    def read(picture: UInt8[np.ndarray, "H W 3"]) -> TextLines:
        result: Any = ocr(picture)
        texts = result.txts or ()
        scores = result.scores or ()
        return [(text, float(score)) for text, score in zip(texts, scores, strict=True)]

    read(BLANK_PICTURE)  # an engine that does not work fails here, not with the first sample
    return read


class ReaderProcess:
    """A reader in a process of its own, which starts at once and ends with this object."""

    def __init__(self, detect: bool, side: int) -> None:
        # -P: the folder of this file must not hide standard modules, such as statistics
        command = [sys.executable, "-P", __file__, str(int(detect)), str(side)]
        pipe = subprocess.PIPE
        environment = os.environ | ONE_THREAD
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment)
        weakref.finalize(self, _kill, self.process)

    def read(self, picture: UInt8[np.ndarray, "H W 3"]) -> TextLines:
        """Return the lines of an 8-bit BGR picture.

        Raises ReadFailed if the process cannot read it, and ProcessEnded if the process has ended.
        """
        pipes: Any = self.process
        try:
            pickle.dump(picture, pipes.stdin, protocol=5)
            pipes.stdin.flush()
            answer = pickle.load(pipes.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError) as error:
            status = self.process.wait()
            raise ProcessEnded(f"an OCR process has ended with status {status}") from error
        if isinstance(answer, str):
            raise ReadFailed(answer)
        return cast(TextLines, answer)


class ReaderPool:
    """Reader processes that threads share, one thread each. One that has ended is replaced."""

    def __init__(self, count: int, detect: bool, side: int) -> None:
        self.detect = detect
        self.side = side
        self.idle = SimpleQueue[ReaderProcess]()
        # all of them load at the same time, before the first one is waited for
        processes = [ReaderProcess(detect, side) for _ in range(count)]
        for process in processes:
            process.read(BLANK_PICTURE)
            self.idle.put(process)

    def read(self, picture: UInt8[np.ndarray, "H W 3"]) -> TextLines:
        """Return the lines of a picture, read by an idle process.

        If that process ends, a new one reads the picture again; if that ends too, ProcessEnded is
        raised.
        """
        process = self.idle.get()
        try:
            return process.read(picture)
        except ProcessEnded:
            process = ReaderProcess(self.detect, self.side)
            return process.read(picture)
        finally:
            self.idle.put(process)


def serve_stdin(detect: bool, side: int) -> None:
    """Read the pictures in stdin and write their lines to stdout until stdin ends.

    A picture that cannot be read is answered with the error's text.
    """
    # Ctrl-C reaches the whole process group; the parent decides when its readers end
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.SIG_IGN)
    # whatever a library prints to stdout would damage the answers, so it goes to stderr
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    read = load_reader(detect, side)
    os.nice(NICENESS)
    parent_has_left = suppress(EOFError, BrokenPipeError, pickle.UnpicklingError)
    with parent_has_left, os.fdopen(answers, "wb") as out, ThreadPoolExecutor(1) as thread:
        while True:
            reading = thread.submit(read, pickle.load(sys.stdin.buffer))
            error = reading.exception()
            answer = reading.result() if error is None else f"{type(error).__name__}: {error}"
            pickle.dump(answer, out)
            out.flush()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(BrokenPipeError), process:
        process.kill()


def _rapidocr_settings(detect: bool, side: int) -> dict[str, object]:
    return {
        "Global.log_level": "critical",
        "Global.text_score": 0.0,
        "Global.use_cls": False,
        "Global.use_det": detect,
        "Det.limit_side_len": side,
        # 48 px high and at least 48 wide: the default pads every line to 320 px
        "Rec.rec_img_shape": [3, 48, 48],
    }


if __name__ == "__main__":
    serve_stdin(bool(int(sys.argv[1])), int(sys.argv[2]))
