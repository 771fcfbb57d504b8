"""A stream of text that outlives whoever reads it.

This module imports no torch: the command line uses it before anything is loaded.
"""

from __future__ import annotations

import errno
import io
import os
from contextlib import suppress
from typing import Any


class _Nowhere(io.TextIOBase):
    """A stream that keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)


class LastingStream:
    """A stream of text that falls silent, instead of raising, once nobody reads it.

    A reader that leaves (`| head -1`) otherwise raises BrokenPipeError, a closed terminal OSError,
    and a closed stream ValueError. None stands for a stream that was closed before Python started.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = _Nowhere() if stream is None else stream

    @classmethod
    def wrap(cls, stream: Any) -> LastingStream:
        """Return a stream that lasts; the same one if it does already."""
        return stream if isinstance(stream, cls) else cls(stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, or drop it; returns its length."""
        self._attempt("write", text)
        return len(text)

    def flush(self) -> None:
        """Write what is in the buffer, or drop it."""
        self._attempt("flush")

    def isatty(self) -> bool:
        """Return whether the stream is a terminal; a closed one is none."""
        return not self._stream.closed and self._stream.isatty()

    def _attempt(self, method: str, *arguments: str) -> None:
        try:
            getattr(self._stream, method)(*arguments)
        except ValueError:
            if not self._stream.closed:
                raise
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO):
                self._redirect_to_nowhere()

    def _redirect_to_nowhere(self) -> None:
        """Give what is in the buffer, and what libraries write there, a place to go."""
        with suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())
