"""Fully sharded data parallel (FSDP2): parameters, gradients and optimizer states in shards.

What FSDP shards: every parameter of the policy, trainable or frozen, is cut into equal parts, one
on each process of a replica, and so are its gradient and its optimizer states. The text encoders,
the autoencoder, the rewards and the frozen copy of the policy that a KL penalty may keep are not
sharded: every process has them whole. A transformer block is the unit: before a block computes, its
parameters are gathered whole, in the dtype that the policy computes in, and freed afterwards. The
parameters outside the blocks (embeddings, the last projection) form one more unit.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

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

from grpo_guard.parallel.blocks import blocks, core
from grpo_guard.parallel.costs import Message, PolicyCalls, PolicySizes, Shares, Traffic
from grpo_guard.parallel.launched import LaunchedStrategy
from grpo_guard.parallel.learner import Learner, Optimization, TorchLearner
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.schema import component, require


@component
class Fsdp(LaunchedStrategy):
    """Shard the policy's parameters, gradients and optimizer states over the processes."""

    replicas: int
    """Number of whole copies of the policy; it divides `processes`.

    1: one copy, of which every process holds a shard. More (hybrid sharding): the processes form
    that many groups, such as the GPUs of each machine, and each group shares one copy.
    """
    reduce: Literal["update", "microbatch"]
    """When gradients are averaged over the processes.

    update: once per update, which keeps whole gradients until then. microbatch: after every
    microbatch, which keeps only shards of the gradients and exchanges more.
    """
    offload: bool
    """Keep the shards and the optimizer in the host's memory: less GPU memory, but slower."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.replicas > 0 and self.processes % self.replicas == 0,
            f"replicas={self.replicas} does not divide processes={self.processes};"
            " give a divisor, 1 for plain FSDP",
        )
        require(
            not self.offload or torch.cuda.is_available(),
            "offload=true needs a GPU to offload from; use false",
        )

    @property
    def shares(self) -> Shares:
        """Divide everything among the processes of a replica."""
        shards = self.processes // self.replicas
        return Shares(
            policy=shards,
            accumulating=shards if self.reduce == "microbatch" else 1,
            gradients=shards,
            moments=shards,
            sharded_by_block=True,
        )

    def count_traffic(self, sizes: PolicySizes, calls: PolicyCalls) -> Traffic:
        """Return the gathers of parameters and the reductions of gradients.

        Every forward and every backward gathers the blocks. The core is gathered once for a forward
        with its backward, and once for a forward without one.
        """
        shards = self.processes // self.replicas
        in_blocks = (calls.forwards + 2 * calls.microbatches) * sizes.blocks
        gathered = in_blocks + (calls.forwards + calls.microbatches) * sizes.rest
        reductions = calls.updates if self.reduce == "update" else calls.microbatches
        reduced = reductions * sizes.trained
        traffic = {
            Message(kind="all-gather", processes=shards): gathered,
            Message(kind="reduce-scatter", processes=shards): reduced,
        }
        if self.replicas > 1:
            traffic[Message(kind="all-reduce", processes=self.replicas)] = reduced // shards
        return traffic

    def place(self, policy: nn.Module, recipe: Optimization, ranks: Ranks) -> Learner:
        """Shard the policy in place: each transformer block, then the rest as one unit.

        Shards and optimizer keep the parameters' own dtype; blocks are gathered in the dtype that
        the policy computes in, and gradients are averaged in float32.
        """
        # Writing into the view of a wrapped module's output would break autograd; no velocity is
        # changed in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
        mesh = self._mesh(ranks.device.type)
        offload = CPUOffloadPolicy() if self.offload else OffloadPolicy()
        precision = MixedPrecisionPolicy(recipe.dtype, torch.float32, cast_forward_inputs=False)
        root = core(policy)
        for module in [*blocks(policy), root]:
            fully_shard(module, mesh=mesh, mp_policy=precision, offload_policy=offload)
        assert isinstance(root, FSDPModule)
        root.register_forward_hook(_free_after_forward)

        def begin_microbatch(last: bool) -> None:
            root.set_requires_gradient_sync(last or self.reduce == "microbatch")

        return TorchLearner(policy, recipe, begin_microbatch=begin_microbatch)

    def _mesh(self, device: str) -> DeviceMesh:
        if self.replicas == 1:
            return init_device_mesh(device, (self.processes,))
        shape = (self.replicas, self.processes // self.replicas)
        return init_device_mesh(device, shape, mesh_dim_names=("replicas", "shards"))


def _free_after_forward(root: Any, args: object, output: object) -> None:
    """Free what a forward without a backward gathered of the root.

    Torch keeps it for a backward. Without one, the next forwards would compute with it even after
    the shards have changed, such as from averaged weights to the policy's own.
    """
    if not torch.is_grad_enabled():
        root.reshard()
