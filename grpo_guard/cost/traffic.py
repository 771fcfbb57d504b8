"""How many bytes the processes of a run exchange in an iteration: counted as they do, and predicted from sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import singledispatch
from typing import Any, NamedTuple, cast, no_type_check

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from grpo_guard.cost.random_weights import Untrained
from grpo_guard.experiment import Experiment
from grpo_guard.kl.none import NoKl
from grpo_guard.old_policy.replay import Replay
from grpo_guard.parallel.learner import trainable_parameters
from grpo_guard.pipeline.model import Checkpoint
from grpo_guard.strategy import Strategy
from grpo_guard.strategy.ddp import Ddp
from grpo_guard.strategy.fsdp import Fsdp, blocks
from grpo_guard.strategy.zero import Zero
from grpo_guard.types import record

TIMES = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2}
"""How often every byte of a message passes each process of a ring, but for the process's own share."""
OPERATIONS = {
    "_allgather_base_": "all-gather",
    "allgather_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
    "allreduce_": "all-reduce",
    "allreduce_coalesced_": "all-reduce",
}


class Message(NamedTuple):
    """What is done with a tensor, among how many processes."""

    kind: str
    among: int


Traffic = Mapping[Message, int]
"""Bytes of the whole tensors, before they are divided or after they are put together."""


def sent(traffic: Traffic) -> float:
    """Bytes that each process sends, and receives, around rings: the least that is possible for long messages."""
    return sum(TIMES[m.kind] * size * (m.among - 1) / m.among for m, size in traffic.items())


class Wire(TorchDispatchMode):
    """Counts what is exchanged of a policy, its gradients and states, all of them floating-point numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.traffic: Counter[Message] = Counter()

    @no_type_check
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = func._schema.name.removeprefix("c10d::")
        if operation in OPERATIONS and _floating(args):
            among = next(dist.ProcessGroup.unbox(x).size() for x in args if _is_group(x))
            self.traffic[Message(kind=OPERATIONS[operation], among=among)] += max(
                map(_weight, args)
            )
        return func(*args, **(kwargs or {}))


def _floating(args: Iterable[object]) -> bool:
    return any(isinstance(x, Tensor) and x.is_floating_point() for x in tree_iter(args))


def _is_group(x: object) -> bool:
    return isinstance(x, torch.ScriptObject) and "ProcessGroup" in str(x._type())


def _weight(argument: object) -> int:
    """Bytes of the tensors in an argument."""
    return sum(x.nbytes for x in tree_iter(argument) if isinstance(x, Tensor))


@record
class Sizes:
    """Bytes of a policy: `computed` of its blocks and of the rest in what it computes in, as it is `stored`, and of
    the gradients of all that is `trained`.
    """

    blocks: int
    rest: int
    stored: int
    trained: int


def sizes(policy: nn.Module, dtype: torch.dtype) -> Sizes:
    """Of a policy that computes in a dtype."""
    inner = sum(p.numel() for block in blocks(policy) for p in block.parameters())
    return Sizes(
        blocks=dtype.itemsize * inner,
        rest=dtype.itemsize * (sum(p.numel() for p in policy.parameters()) - inner),
        stored=sum(p.nbytes for p in policy.parameters()),
        trained=sum(p.nbytes for p in trainable_parameters(policy)),
    )


@record
class Calls:
    """Of the policy by one process in an iteration: `walks` without gradients, microbatches that are `replayed`, and
    `updates`, optimizer steps.
    """

    walks: int
    replayed: int
    updates: int


def calls(exp: Experiment) -> Calls:
    """Of an iteration without an evaluation."""
    batch_sizes = exp.batch_sizes
    replays = batch_sizes.updates * batch_sizes.accumulation
    compared = not isinstance(exp.kl, NoKl) and cast(Checkpoint, exp.backbone).lora is not None
    again = replays * (isinstance(exp.old_policy, Replay) + compared)
    walks = exp.steps * batch_sizes.samples_here // exp.microbatch
    return Calls(walks=walks + again, replayed=replays, updates=batch_sizes.updates)


def predict(exp: Experiment) -> Traffic:
    """What an iteration but the first exchanges; raises ConfigError for unknown architectures."""
    model = Untrained(recipe=cast(Checkpoint, exp.backbone)).load(torch.device("meta"))
    return exchanged(exp.strategy, sizes(model.policy, model.dtype), calls(exp))


@singledispatch
def exchanged(strategy: Strategy, size: Sizes, call: Calls) -> Traffic:
    """What an iteration exchanges under a strategy."""
    return {}


@exchanged.register
def _(strategy: Ddp, size: Sizes, call: Calls) -> Traffic:
    return {Message(kind="all-reduce", among=strategy.processes): call.updates * size.trained}


@exchanged.register
def _(strategy: Fsdp, size: Sizes, call: Calls) -> Traffic:
    """Blocks are gathered for every forward and every backward; the rest stays whole from a backward to the next."""
    shards = strategy.processes // strategy.replicas
    reduced = (call.updates if strategy.reduce == "update" else call.replayed) * size.trained
    found = {
        Message(kind="all-gather", among=shards): (call.walks + 2 * call.replayed) * size.blocks
        + call.replayed * size.rest,
        Message(kind="reduce-scatter", among=shards): reduced,
    }
    if strategy.replicas > 1:
        found[Message(kind="all-reduce", among=strategy.replicas)] = reduced // shards
    return found


@exchanged.register
def _(strategy: Zero, size: Sizes, call: Calls) -> Traffic:
    """The most: stage 3 gathers a parameter that it has room to keep less often."""
    reduced = (call.updates if strategy.stage == 1 else call.replayed) * size.trained
    if strategy.stage < 3:
        parts = {"all-reduce": reduced, "all-gather": call.updates * size.trained}
    else:
        parts = {
            "all-gather": (call.walks + 2 * call.replayed) * size.stored,
            "reduce-scatter": reduced,
        }
    return {Message(kind=kind, among=strategy.processes): part for kind, part in parts.items()}
