"""Distributed data parallel: a whole policy on every process, whose gradients are averaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from grpo_guard.parallel.costs import WHOLE, Message, PolicyCalls, PolicySizes, Shares, Traffic
from grpo_guard.parallel.launched import LaunchedStrategy
from grpo_guard.parallel.learner import Learner, Optimization, TorchLearner
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.schema import component

BUCKET = 2**26
"""Bytes of one message, 64 MiB: few messages, and little memory for the copies in them."""


@component
class Ddp(LaunchedStrategy):
    """Keep the whole policy, its gradients and optimizer states on every process.

    Gradients are averaged once per optimizer step. PyTorch's own wrapper is not used: it would
    search the graph in every backward for adapters without a gradient, and it has nothing to
    overlap, because an update accumulates many microbatches (docs/adr/0015).
    """

    shares: ClassVar[Shares] = WHOLE

    def count_traffic(self, sizes: PolicySizes, calls: PolicyCalls) -> Traffic:
        """Return one all-reduce of the gradients per update."""
        message = Message(kind="all-reduce", processes=self.processes)
        return {message: calls.updates * sizes.trained}

    def place(self, policy: nn.Module, recipe: Optimization, ranks: Ranks) -> Learner:
        """Copy the first process's trainable parameters to all processes."""
        learner = TorchLearner(policy, recipe, share_gradients=average_gradients)
        for parameter in learner.parameters:
            dist.broadcast(parameter.detach(), 0)
        return learner


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes, in place."""
    for bucket in buckets([p.grad for p in parameters if p.grad is not None]):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        means = (flat / dist.get_world_size()).split([gradient.numel() for gradient in bucket])
        for gradient, mean in zip(bucket, means, strict=True):
            gradient.copy_(mean.view_as(gradient))


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Group neighbouring tensors into messages of at most `BUCKET` bytes.

    A tensor that is larger is a message by itself.
    """
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.nbytes > BUCKET:
            yield bucket
            bucket = []
            size = 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
