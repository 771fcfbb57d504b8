"""No average."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import nn

from grpo_guard.ema import Averaged
from grpo_guard.types import component


@component
class NoEma:
    """Evaluations and checkpoints see the weights as they are."""

    def follow(self, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> Averaged:
        """Nothing to keep."""
        return nullcontext
