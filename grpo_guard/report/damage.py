"""Files of a run that are damaged: the run is refused, or compared without a part of it."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import yaml

from grpo_guard.report.notation import count_of
from grpo_guard.schema import ConfigError

T = TypeVar("T")
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    EOFError,
    zlib.error,
    yaml.YAMLError,
)
"""What reading a damaged file of a run raises."""


def load_or_refuse(path: Path, load: Callable[[], T]) -> T:
    """Load a file that a run cannot be compared without; raises ConfigError if it is damaged."""
    try:
        return load()
    except UNREADABLE as error:
        raise ConfigError(
            f"{path} cannot be read ({_reason(error)}); restore the file, or leave this run out"
        ) from error


def load_or_note(
    path: Path, load: Callable[[], T], loss: str, damages: list[str], *, default: T
) -> T:
    """Load a file that a run can be compared without.

    If it is damaged, a line in `damages` names it and what is lost (`loss`), and the result is the
    default.
    """
    try:
        return load()
    except UNREADABLE as error:
        damages.append(f"{path} cannot be read ({_reason(error)}): {loss}; restore the file")
        return default


def note_torn_lines(
    path: Path, are_whole: Sequence[bool], has_ended: bool, loss: str, damages: list[str]
) -> None:
    """Note the lines of a file that cannot be read.

    The last line of a run that has not ended may be half written, which is no damage.
    """
    torn = sum(not whole for whole in (are_whole if has_ended else are_whole[:-1]))
    if torn:
        lines = count_of(torn, "line", "lines")
        damages.append(f"{path} has {lines} that cannot be read: {loss}; restore the file")


def find_packed(path: Path) -> Path:
    """Return the path of the compressed file beside it if a file is not there."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.is_file() else path


def read_lines(path: Path) -> list[str] | None:
    """Return the lines of a file, which may be compressed; None if there is no file.

    Raises one of `UNREADABLE` if the file is damaged.
    """
    if not path.is_file():
        return None
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    return data.decode("utf-8", errors="replace").splitlines()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())
