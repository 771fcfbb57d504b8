"""Parameters, gradients and optimizer states in shards (FSDP2)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from grpo_guard.parallel.learner import Learner, Optimization
from grpo_guard.parallel.ranks import LaunchedStrategy, Ranks
from grpo_guard.types import component, require


class _Sharded(Learner):
    def __init__(self, policy: nn.Module, recipe: Optimization, always: bool) -> None:
        super().__init__(policy, recipe)
        self.always = always

    def begin_microbatch(self, last: bool) -> None:
        whole = core(self.policy)
        assert isinstance(whole, FSDPModule)
        whole.set_requires_gradient_sync(last or self.always)


@component
class Fsdp(LaunchedStrategy):
    """The processes in `replicas` groups, each of which holds the policy once, a block at a time.

    With one replica every process has a shard of everything; with more, shards stay within a group (hybrid sharding on
    a 2-D mesh), such as the GPUs of a machine. Gradients are reduced once per update, and whole until then, or after
    every microbatch, which exchanges more and keeps but shards of them. `offload` keeps shards in the host's memory.
    """

    replicas: int
    reduce: Literal["update", "microbatch"]
    offload: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.replicas > 0 and self.processes % self.replicas == 0,
            f"replicas={self.replicas} does not divide processes={self.processes}; give a divisor, 1 for plain FSDP",
        )
        require(
            not self.offload or torch.cuda.is_available(),
            "offload=true needs a GPU to offload from; use false",
        )

    def place(self, policy: nn.Module, recipe: Optimization, ranks: Ranks) -> Learner:
        """The policy in shards, gathered block by block in what it computes in."""
        mesh, offload = (
            self._mesh(ranks.device.type),
            CPUOffloadPolicy() if self.offload else OffloadPolicy(),
        )
        warnings.filterwarnings(
            "ignore", "FSDP2-wrapped module .* returned a view"
        )  # no velocity is changed in place
        precision = MixedPrecisionPolicy(recipe.dtype, torch.float32, cast_forward_inputs=False)
        for block in [*blocks(policy), core(policy)]:
            fully_shard(block, mesh=mesh, mp_policy=precision, offload_policy=offload)
        return _Sharded(policy, recipe, self.reduce == "microbatch")

    def _mesh(self, device: str) -> DeviceMesh:
        if self.replicas == 1:
            return init_device_mesh(device, (self.processes,))
        shape = (self.replicas, self.processes // self.replicas)
        return init_device_mesh(device, shape, mesh_dim_names=("replicas", "shards"))


def core(module: nn.Module) -> nn.Module:
    """The innermost module that holds everything: a transformer may be called through more than one wrapper."""
    inner = [child for child in module.children() if any(True for _ in child.parameters())]
    own = any(True for _ in module.parameters(recurse=False))
    return module if own or len(inner) != 1 else core(inner[0])


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of modules: a transformer's blocks."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else blocks(child)
