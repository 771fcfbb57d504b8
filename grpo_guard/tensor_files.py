"""Lets safetensors write files as Python writes its own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

# Reading the mask means setting it for a moment; here, no other thread writes yet.
_UMASK = os.umask(0o022)
os.umask(_UMASK)


@contextmanager
def write_like_python(place: Path) -> Iterator[None]:
    """Give files of safetensors, `place` or those below it, the permissions of other files.

    safetensors keeps them from everybody but their owner, so colleagues could not read a
    checkpoint. Its own errors are none of Python's either, whether the disk is full or the folder
    is gone: raises OSError, with `place` as its file, instead.
    """
    try:
        yield
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        number = int(code[1])
        raise OSError(number, os.strerror(number), str(place)) from error
    for file in place.rglob("*.safetensors") if place.is_dir() else [place]:
        with suppress(OSError):  # some file systems have no permissions
            file.chmod(0o666 & ~_UMASK)
