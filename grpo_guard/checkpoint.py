"""Checkpoints of what is trained."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def save(write: Callable[[Path, int], None], folder: Path, iteration: int) -> Path:
    """Write `checkpoints/<iteration>/`: beside its place first, then renamed, so that what stands there is whole."""
    final = folder / "checkpoints" / f"{iteration:06d}"
    partial = final.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial, iteration)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    return final


@contextmanager
def kept(write: Callable[[Path, int], None], folder: Path, every: int) -> Iterator[Callable[[int], None]]:
    """Call the result with the number of finished iterations: saves every `every` of them, and the last at the end."""
    finished = 0

    def done(iterations: int) -> None:
        nonlocal finished
        finished = iterations
        if iterations % every == 0:
            save(write, folder, iterations)

    try:
        yield done
    finally:
        if finished % every or not finished:
            save(write, folder, finished)
