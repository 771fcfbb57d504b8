"""Lines of text in pictures, read by PP-OCRv6 (rapidocr, whose wheel holds the weights) here or in processes beside.

A process is this file run as a script, which imports no torch: pictures go into its stdin, their lines come out of its
stdout, and it ends when its stdin does, which is when its parent ends in whatever way.
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

Lines = list[tuple[str, float]]
"""What the lines of a picture say, and how sure that is, from 0 to 1."""
Read = Callable[[UInt8[np.ndarray, "H W 3"]], Lines]
NICENESS = 5
"""Processes that read leave the cores to whatever else wants them."""
SINGLE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1")
BLANK = np.full((64, 64, 3), 255, np.uint8)
Engine = Mapping[str, object]
"""What rapidocr is told of the library that computes, and of its weights."""
CORE: Engine = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
"""ONNX Runtime on one core, with the wheel's own weights."""


class Ended(RuntimeError):
    """A process that reads is no more."""


class Unread(RuntimeError):
    """A picture that a process could not read, and why."""


def reader(detect: bool, side: int, engine: Engine = CORE) -> Read:
    """Reads 8-bit BGR pictures, one at a time, with the models loaded."""
    from rapidocr import RapidOCR

    ocr = RapidOCR(params={**_settings(detect, side), **engine})

    def read(picture: UInt8[np.ndarray, "H W 3"]) -> Lines:
        found: Any = ocr(picture)
        return [
            (line, float(sure))
            for line, sure in zip(found.txts or (), found.scores or (), strict=True)
        ]

    read(BLANK)
    return read


class Process:
    """A reader in a process of its own, which begins to load at once and ends with this object."""

    def __init__(self, detect: bool, side: int) -> None:
        command = [sys.executable, "-P", __file__, str(int(detect)), str(side)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=os.environ | SINGLE)
        weakref.finalize(self, _end, self.process)

    def read(self, picture: UInt8[np.ndarray, "H W 3"]) -> Lines:
        """The lines of an 8-bit BGR picture; raises Unread where there is no reading it, Ended without a process."""
        pipes: Any = self.process
        try:
            pickle.dump(picture, pipes.stdin, protocol=5)
            pipes.stdin.flush()
            answer = pickle.load(pipes.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError) as error:
            raise Ended(
                f"a process that reads has ended with status {self.process.wait()}"
            ) from error
        if isinstance(answer, str):
            raise Unread(answer)
        return cast(Lines, answer)


class Processes:
    """Readers in some processes, for as many threads; one that has ended is replaced, and its picture read again."""

    def __init__(self, count: int, detect: bool, side: int) -> None:
        self.detect, self.side, self.idle = detect, side, SimpleQueue[Process]()
        started = [Process(detect, side) for _ in range(count)]
        for process in started:
            process.read(BLANK)
            self.idle.put(process)

    def read(self, picture: UInt8[np.ndarray, "H W 3"]) -> Lines:
        """As `Process.read`, by one that is idle; raises Ended where the picture ends its replacement too."""
        process = self.idle.get()
        try:
            return process.read(picture)
        except Ended:
            process = Process(self.detect, self.side)
            return process.read(picture)
        finally:
            self.idle.put(process)


def serve(detect: bool, side: int) -> None:
    """Answer the pictures in stdin on stdout until stdin ends, which alone ends this; what is printed is an error."""
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.SIG_IGN)
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    read = reader(detect, side)
    os.nice(NICENESS)
    gone = suppress(EOFError, BrokenPipeError, pickle.UnpicklingError)
    with gone, os.fdopen(answers, "wb") as out, ThreadPoolExecutor(1) as thread:
        while True:
            reading = thread.submit(read, pickle.load(sys.stdin.buffer))
            error = reading.exception()
            pickle.dump(
                reading.result() if error is None else f"{type(error).__name__}: {error}", out
            )
            out.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(BrokenPipeError), process:
        process.kill()


def _settings(detect: bool, side: int) -> dict[str, object]:
    """rapidocr's options; recognition is padded to no more than the line's own width."""
    return {
        "Global.log_level": "critical",
        "Global.text_score": 0.0,
        "Global.use_cls": False,
        "Global.use_det": detect,
        "Det.limit_side_len": side,
        "Rec.rec_img_shape": [3, 48, 48],
    }


if __name__ == "__main__":
    serve(bool(int(sys.argv[1])), int(sys.argv[2]))
