"""The bytes that the processes of a run exchange in an iteration, predicted and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, cast, no_type_check

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from grpo_guard.cost.random_weights import META, Untrained
from grpo_guard.experiment import Experiment
from grpo_guard.parallel.blocks import blocks
from grpo_guard.parallel.costs import Message, PolicyCalls, PolicySizes, Traffic
from grpo_guard.parallel.learner import trainable_parameters
from grpo_guard.pipeline.recipe import PipelineRecipe

PASSES = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2}
"""How often each byte of a message passes each process of a ring, except the process's own share.

An all-reduce is a reduce-scatter and an all-gather.
"""
OPERATIONS = {
    "_allgather_base_": "all-gather",
    "allgather_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
    "allreduce_": "all-reduce",
    "allreduce_coalesced_": "all-reduce",
}
"""Kinds of messages by the names of torch's operators in the namespace c10d."""


def predict_traffic(exp: Experiment) -> Traffic:
    """Predict what an iteration without an evaluation exchanges, after the first one.

    Raises ConfigError for an unknown architecture.
    """
    model = Untrained(recipe=cast(PipelineRecipe, exp.backbone)).load(META)
    return exp.strategy.count_traffic(measure_policy(model.policy, model.dtype), count_calls(exp))


def measure_policy(policy: nn.Module, dtype: torch.dtype) -> PolicySizes:
    """Measure a policy that computes in a dtype."""
    in_blocks = sum(p.numel() for block in blocks(policy) for p in block.parameters())
    everywhere = sum(p.numel() for p in policy.parameters())
    return PolicySizes(
        blocks=dtype.itemsize * in_blocks,
        rest=dtype.itemsize * (everywhere - in_blocks),
        stored=sum(p.nbytes for p in policy.parameters()),
        trained=sum(p.nbytes for p in trainable_parameters(policy)),
    )


def count_calls(exp: Experiment) -> PolicyCalls:
    """Count one process's calls of the policy in an iteration without an evaluation."""
    sizes = exp.batch_sizes
    microbatches = sizes.updates * sizes.accumulation
    # With adapters, the reference is the policy without them. Else it is a whole copy on every
    # process, which exchanges nothing.
    shares_weights = cast(PipelineRecipe, exp.backbone).lora is not None
    reference_forwards = exp.kl.reference_forwards if shares_weights else 0
    rollout = exp.steps * sizes.samples_here // sizes.microbatch
    extra_forwards = exp.old_policy.extra_forwards(exp.updates) + reference_forwards
    return PolicyCalls(
        forwards=rollout + round(microbatches * extra_forwards),
        microbatches=microbatches,
        updates=sizes.updates,
    )


def count_sent_bytes(traffic: Traffic) -> float:
    """Count the bytes that each process sends around rings, which are as many as it receives.

    For long messages no algorithm sends less.
    """
    return sum(
        PASSES[message.kind] * size * (message.processes - 1) / message.processes
        for message, size in traffic.items()
    )


class TrafficCounter(TorchDispatchMode):
    """Count the messages that carry floating-point tensors: parameters, gradients and states.

    What ranks exchange as Python objects is small, and not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.traffic: Counter[Message] = Counter()

    @no_type_check
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = func._schema.name.removeprefix("c10d::")
        if operation in OPERATIONS and _has_floating_point(args):
            group = next(dist.ProcessGroup.unbox(x) for x in args if _is_process_group(x))
            message = Message(kind=OPERATIONS[operation], processes=group.size())
            # The largest argument is the whole tensor, the other is a shard of it.
            self.traffic[message] += max(_count_bytes(x) for x in args)
        return func(*args, **(kwargs or {}))


def _has_floating_point(args: Iterable[object]) -> bool:
    return any(isinstance(x, Tensor) and x.is_floating_point() for x in tree_iter(args))


def _is_process_group(x: object) -> bool:
    return isinstance(x, torch.ScriptObject) and "ProcessGroup" in str(x._type())


def _count_bytes(argument: object) -> int:
    return sum(x.nbytes for x in tree_iter(argument) if isinstance(x, Tensor))
