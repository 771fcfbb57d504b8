"""What the C library does with the memory of tensors that are gone."""

from __future__ import annotations

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of glibc's settings, as mallopt(3) numbers them."""
LARGEST_TRIM = 2**31 - 1
"""Bytes of free memory above which glibc returns it to the system; mallopt takes no more."""
LARGEST_MMAP = 32 * 2**20
"""Bytes from which on an allocation has pages of its own; glibc takes no more."""
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""Variables of the environment by which users choose for themselves."""


def keep_freed_memory() -> bool:
    """Keep freed memory for the next tensors, unless the environment says otherwise.

    glibc returns it to the system, which then clears new pages for the next large tensors. No
    number changes. Returns whether it could be set; other C libraries have no such setting.
    """
    if any(name in os.environ for name in VARIABLES):
        return False
    return set_thresholds(LARGEST_TRIM)


def return_freed_memory() -> bool:
    """Return freed memory to the system as glibc does by itself after a few large tensors."""
    return set_thresholds(2 * LARGEST_MMAP)


def set_thresholds(trim: int) -> bool:
    """Set how many bytes of free memory the process keeps; return whether it could be set."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # Setting one of the two ends glibc's own adaptation of both.
    return bool(mallopt(MMAP_THRESHOLD, LARGEST_MMAP) and mallopt(TRIM_THRESHOLD, trim))
