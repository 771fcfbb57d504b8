"""Reads files of histograms (.npz), which may be damaged; nothing in them runs."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError
from zipfile import BadZipFile

import numpy as np
from numpy import ndarray

from grpo_guard.messages import one_line

_DAMAGES = (
    ArithmeticError,
    BadZipFile,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TokenError,
    TypeError,
    ValueError,
    zlib.error,
)
"""What zipfile and numpy raise for files that are damaged or hold something else."""


def load_histograms(file: Path) -> dict[str, ndarray]:
    """Read the iterations (N,), the edges (K+1,), and the counts (N, K) under each key.

    Raises ValueError if the file is damaged or holds something else, and OSError if it cannot be
    read.
    """
    content = file.read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = dict(archive)
    except _DAMAGES as error:
        raise ValueError(one_line(error) or type(error).__name__) from error
    if not _are_histograms(arrays):
        raise ValueError("its arrays are no histograms")
    return arrays


def _are_histograms(arrays: Mapping[str, ndarray]) -> bool:
    """Whether there is a count for each iteration and each bin between edges."""
    if not {"iteration", "edges"} <= arrays.keys():
        return False
    iteration, edges = arrays["iteration"], arrays["edges"]
    if iteration.ndim != 1 or edges.ndim != 1:
        return False
    shape = (len(iteration), max(len(edges) - 1, 0))
    counts = [array for key, array in arrays.items() if key not in ("iteration", "edges")]
    numbers = all(array.dtype.kind in "iuf" for array in arrays.values())
    return numbers and all(array.shape == shape for array in counts)
