"""Errors of libraries that mean that a disk does not suffice."""

import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

from grpo_guard.shortage import raise_os_errors


def test_what_safetensors_raises_for_a_full_disk_is_an_error_of_the_system():
    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    refused = pytest.raises(OSError, match="No space left on device")
    with refused as raised, raise_os_errors(Path("adapters")):
        raise SafetensorError(text)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, "adapters")


def test_other_errors_of_safetensors_stay_what_they_are():
    with pytest.raises(SafetensorError, match="InvalidHeader"), raise_os_errors(Path("adapters")):
        raise SafetensorError("Error while deserializing header: InvalidHeader")
