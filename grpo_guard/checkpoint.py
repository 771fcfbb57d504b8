"""Checkpoints of what is trained."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from grpo_guard.backbone import Model


def save(model: Model, folder: Path, iteration: int) -> Path:
    """Write `checkpoints/<iteration>/`: beside its place first, then renamed, so that what stands there is whole."""
    final = folder / "checkpoints" / f"{iteration:06d}"
    partial = final.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save(partial)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    return final


@contextmanager
def kept(model: Model, folder: Path, every: int) -> Iterator[Callable[[int], None]]:
    """Call the result with the number of finished iterations: saves every `every` of them, and the last at the end."""
    finished = 0

    def done(iterations: int) -> None:
        nonlocal finished
        finished = iterations
        if iterations % every == 0:
            save(model, folder, iterations)

    try:
        yield done
    finally:
        if finished % every or not finished:
            save(model, folder, finished)
