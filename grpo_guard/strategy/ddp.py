"""A whole policy on every process; gradients are averaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from grpo_guard.parallel.learner import Learner, Optimization
from grpo_guard.parallel.ranks import LaunchedStrategy, Ranks
from grpo_guard.types import component

BUCKET = 2**26  # bytes of a message


class _Averaging(Learner):
    """Gradients meet once per step, after the last microbatch: there is nothing to overlap them with before."""

    def __init__(self, policy: nn.Module, recipe: Optimization) -> None:
        super().__init__(policy, recipe)
        for p in self.parameters:
            dist.broadcast(p.detach(), 0)

    def step(self) -> float:
        for bucket in buckets([p.grad for p in self.parameters if p.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            parts = (flat / dist.get_world_size()).split([gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        return super().step()


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours that together are some megabytes: messages that are neither many nor larger than need be."""
    last, size = list[Tensor](), 0
    for tensor in tensors:
        if last and size + tensor.nbytes > BUCKET:
            yield last
            last, size = [], 0
        last.append(tensor)
        size += tensor.nbytes
    if last:
        yield last


@component
class Ddp(LaunchedStrategy):
    """Every process has the whole policy."""

    def place(self, policy: nn.Module, recipe: Optimization, ranks: Ranks) -> Learner:
        """A copy of the policy here, alike on every process."""
        return _Averaging(policy, recipe)
