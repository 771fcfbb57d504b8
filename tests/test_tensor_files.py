"""What safetensors writes is as if Python had written it."""

import errno
import stat
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from grpo_guard.tensor_files import write_like_python


def permissions(file):
    return stat.S_IMODE(file.stat().st_mode)


@pytest.mark.parametrize("in_folder", [False, True])
def test_files_have_the_permissions_of_others(in_folder, tmp_path):
    """safetensors lets nobody but their owner read them."""
    usual = tmp_path / "usual"
    usual.touch()
    file = tmp_path / "lora/weights.safetensors"
    file.parent.mkdir()
    with write_like_python(tmp_path if in_folder else file):
        save_file({"weight": torch.zeros(3)}, file)
        file.chmod(0o600)
    assert permissions(file) == permissions(usual)


def test_what_safetensors_raises_for_a_full_disk_is_an_error_of_the_system():
    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    refused = pytest.raises(OSError, match="No space left on device")
    with refused as raised, write_like_python(Path("adapters")):
        raise SafetensorError(text)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, "adapters")


def test_other_errors_of_safetensors_stay_what_they_are():
    with pytest.raises(SafetensorError, match="InvalidHeader"), write_like_python(Path("adapters")):
        raise SafetensorError("Error while deserializing header: InvalidHeader")
