"""A whole policy on every process; gradients are averaged."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from grpo_guard.learner import Learner, Optimization
from grpo_guard.ranks import Launched, Ranks
from grpo_guard.types import component


class _Averaging(Learner):
    """Gradients meet once per step, after the last microbatch: there is nothing to overlap them with before."""

    def __init__(self, policy: nn.Module, recipe: Optimization) -> None:
        super().__init__(policy, recipe)
        for p in self.parameters:
            dist.broadcast(p.detach(), 0)

    def step(self) -> float:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
            work.wait()
        torch._foreach_div_(gradients, dist.get_world_size())
        return super().step()


@component
class Ddp(Launched):
    """Every process has the whole policy."""

    def place(self, policy: nn.Module, recipe: Optimization, ranks: Ranks) -> Learner:
        """A copy of the policy here, alike on every process."""
        return _Averaging(policy, recipe)
