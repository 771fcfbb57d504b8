"""A pretended GPU: a torch device over the host's memory, built by the compiler of this machine."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import types
from contextlib import nullcontext
from pathlib import Path

import torch

SOURCE = Path(__file__).parent / "device.cpp"
BUILDS = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "grpo_guard"
"""Where the library is kept: one file per version of torch and of the source."""
NAME = "pretended"


def build():
    """Return the built library; None without a compiler."""
    compiler = shutil.which("g++")
    if compiler is None:
        return None
    version = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = BUILDS / f"{NAME}_{version}.so"
    if not library.exists():
        BUILDS.mkdir(parents=True, exist_ok=True)
        root = Path(torch.__file__).parent
        headers = [root / "include", root / "include/torch/csrc/api/include"]
        with tempfile.TemporaryDirectory(dir=BUILDS) as folder:
            built = Path(folder) / library.name
            command = [compiler, "-std=c++20", "-O1", "-w", "-shared", "-fPIC", str(SOURCE)]
            command += [f"-I{header}" for header in headers]
            command += ["-o", str(built), f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"]
            subprocess.run(command, check=True)
            built.replace(library)
    return library


class Stream:
    """The one stream, on which everything has been computed."""

    device_type = NAME

    def synchronize(self):
        """Wait for nothing."""

    def wait_stream(self, other):
        """Wait for nothing."""


def make_module(library):
    """Return what torch and this package call on torch.cuda."""
    stream = Stream()
    module = types.ModuleType(f"torch.{NAME}")
    functions = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "current_stream": lambda device=None: stream,
        "stream": lambda chosen: nullcontext(),
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=0: torch.zeros(8, dtype=torch.uint8),
        "set_rng_state": lambda state, device=0: None,
        "_is_in_bad_fork": lambda: False,
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16],
        "memory_allocated": lambda device=None: library.pretended_live(),
        "max_memory_allocated": lambda device=None: library.pretended_peak(),
        "reset_peak_memory_stats": lambda device=None: library.pretended_reset_peak(),
        "limit_memory": library.pretended_limit,
        "count_waits": lambda: library.pretended_waits(),
    }
    vars(module).update(functions)
    return module


def load(library):
    """Make the device known to torch and return it; once per process."""
    functions = ctypes.CDLL(str(library))
    functions.pretended_waits.restype = ctypes.c_int64
    functions.pretended_live.restype = ctypes.c_int64
    functions.pretended_peak.restype = ctypes.c_int64
    functions.pretended_limit.argtypes = [ctypes.c_int64]
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, make_module(functions))
    torch.utils.generate_methods_for_privateuse1_backend(unsupported_dtype=[])
    return torch.device(NAME, 0)
