"""Compiling the blocks of a transformer, and where the results are kept for later runs."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grpo_guard.parallel.blocks import blocks
from grpo_guard.schema import ConfigError
from grpo_guard.shortage import is_shortage

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""Variable of the environment that tells torch where to keep what it compiled."""
WORKERS = "TORCHINDUCTOR_COMPILE_THREADS"
"""Variable of the environment that tells torch in how many processes to compile."""
VARIANTS = 256
"""Variants of a block that are compiled at most: one per number of rows, with and without gradient,
and with and without adapters. A run has a dozen at most; torch's own limit is 8."""

_log = logging.getLogger(__name__)


def compile_blocks(transformer: nn.Module) -> None:
    """Let torch compile every block at its first call, for each shape of its arguments anew.

    The blocks stay the same modules with the same names. Compiling them rather than the whole
    transformer takes less time, since equal blocks share their code, and is as fast afterwards.
    Raises ConfigError if this machine cannot compile.
    """
    _choose_cache()
    import torch._dynamo  # takes seconds, and reads where the cache is

    torch._dynamo.config.recompile_limit = VARIANTS
    device = next(transformer.parameters()).device
    _try_compiler(device)
    options = _choose_options(device)
    for block in blocks(transformer):
        # One graph or an error: what is compiled in part would be slow without a word.
        block.compile(fullgraph=True, dynamic=False, options=options)


def _choose_cache() -> None:
    """Keep compiled code in the user's cache, which all runs share, unless the environment says
    where. Torch's own default is a temporary folder.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    # Torch writes its default into the environment once any part of it has asked for the cache.
    if os.environ.get(CACHE, default_cache_dir()) == default_cache_dir():
        os.environ[CACHE] = str(Path(base) / "grpo_guard" / "compiled")
    cache = os.environ[CACHE]
    if not Path(cache).is_dir():
        _log.warning("the first run compiles the transformer, which takes some two minutes")
    # More processes than a run has threads would slow down the runs beside it.
    if WORKERS not in os.environ:
        import torch._inductor.config as inductor

        inductor.compile_threads = torch.get_num_threads()


def _choose_options(device: torch.device) -> dict[str, Any]:
    """Return what torch's compiler is told, as far as the installed torch knows it."""
    # By default, half precision is rounded only where one kernel hands its numbers to the next one.
    # That is elsewhere if a backward follows, and an update would not replay what a rollout drew.
    options: dict[str, Any] = {"emulate_precision_casts": True}
    if device.type == "cpu":
        options |= _choose_faster_options()
    return options


def _choose_faster_options() -> dict[str, Any]:
    """Return what makes compiled code faster on a CPU."""
    import torch._inductor.config as inductor

    from grpo_guard.pipeline.products import UseOneDNN, has_onednn

    options: dict[str, Any] = {}
    # GELU takes a tenth of a forward. Its tanh is faster from torch's exponential.
    if hasattr(inductor.cpp, "use_decompose_tanh"):
        options["cpp.use_decompose_tanh"] = True
    # Matrix products take two fifths of an iteration.
    if has_onednn():
        options["post_grad_custom_post_pass"] = UseOneDNN()
    return options


def _try_compiler(device: torch.device) -> None:
    """Compile and call the smallest function; raises ConfigError with the reason if that fails."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        torch.compile(_add_one)(torch.zeros(2, device=device))
    except (RuntimeError, OSError) as error:
        if is_shortage(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"backbone.compile=true needs a compiler that torch can use, and trying one failed"
            f" ({reason}); install g++ and the headers of Python, or set it to false"
        ) from error


def _add_one(x: Tensor) -> Tensor:
    return x + 1
