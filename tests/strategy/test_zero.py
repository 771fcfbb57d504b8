"""What ZeRO refuses before DeepSpeed starts."""

import pytest
import torch
from torch import nn

from grpo_guard.parallel.learner import Optimization
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.schema import ConfigError
from grpo_guard.strategy.zero import Zero


def test_stage_3_refuses_compiled_blocks():
    """It gathers every layer by a hook, which cannot be part of one graph."""
    policy = nn.Sequential(nn.ModuleList([nn.Linear(3, 3)]))
    policy[0][0].compile(backend="eager")
    recipe = Optimization(optim=torch.optim.AdamW, max_norm=1.0, dtype=torch.bfloat16)
    zero = Zero(processes=1, timeout=1.0, threads=None, stage=3, offload=False)
    with pytest.raises(ConfigError, match=r"^backbone.compile=true .* strategy=zero3; use strateg"):
        zero.place(policy, recipe, Ranks(device=torch.device("cpu")))
