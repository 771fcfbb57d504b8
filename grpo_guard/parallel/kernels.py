"""The choice of torch's kernels: exact ones, and ones that repeat their numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def keep_float32() -> None:
    """Compute float32 in float32 on a GPU, not in TF32, which rounds a thousand times as much.

    torch's own default is TF32 in convolutions and recurrent layers: in decoding, in the first
    layer of CLIP, in text readers. Containers of NVIDIA switch matrices to TF32 too.
    """
    torch.set_float32_matmul_precision("highest")
    # Libraries still read this older name, and torch refuses to read it while the two disagree.
    torch.backends.cudnn.allow_tf32 = False
    for operation in ("conv", "rnn"):
        # torch has these names since 2.9. Without them, a wider setting of TF32 would reach here.
        setting = getattr(torch.backends.cudnn, operation, None)
        if setting is not None:
            setting.fp32_precision = "ieee"


def choose_kernels(deterministic: bool) -> None:
    """Use only kernels that give the same numbers every time, or any kernels.

    torch warns of an operation that has no such kernel. float32 is computed in float32 in any case.
    """
    keep_float32()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # torch would use cuDNN's attention here even though its backward gives other numbers each time.
    torch.backends.cuda.enable_cudnn_sdp(not deterministic)


@contextmanager
def repeat_backward() -> Iterator[None]:
    """Let the backward of attention give the same numbers every time, if the run shall.

    torch does that only while operations without such a kernel are errors. In a whole run they are
    warnings, because scorers have such operations; a policy's backward has none.
    """
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)
