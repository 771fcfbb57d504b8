"""The terms in which a strategy states its costs: shares of the training state, and messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from grpo_guard.schema import record


@record
class Shares:
    """Numbers of processes among which the training state is divided; 1: all have all of it."""

    policy: int
    """The policy's parameters."""
    accumulating: int
    """Gradients while the microbatches of an update add up."""
    gradients: int
    """Gradients at the optimizer step."""
    moments: int
    """The optimizer's states."""
    sharded_by_block: bool = False
    """True: a block's parameters are gathered when it computes, in the dtype that the policy
    computes in, so autocast copies none of them. Its gradients are averaged once they are there."""


WHOLE = Shares(policy=1, accumulating=1, gradients=1, moments=1)
"""Every process holds everything."""


@record
class PolicySizes:
    """Bytes of a policy, all of them of whole tensors."""

    blocks: int
    """Parameters of the transformer blocks, in the dtype that the policy computes in."""
    rest: int
    """All other parameters, in the dtype that the policy computes in."""
    stored: int
    """All parameters, in the dtypes in which they are kept."""
    trained: int
    """Gradients of the trainable parameters, which have as many bytes as these."""


@record
class PolicyCalls:
    """How often one process calls the policy in an iteration without an evaluation."""

    forwards: int
    """Forwards of a microbatch without gradients: the rollout, an old policy, a reference."""
    microbatches: int
    """Microbatches that are forwarded and go backward."""
    updates: int
    """Optimizer steps."""


class Message(NamedTuple):
    """A collective operation among a number of processes."""

    kind: str
    """all-gather, reduce-scatter or all-reduce."""
    processes: int
    """How many processes take part."""


Traffic = Mapping[Message, int]
"""Bytes of whole tensors by message: before they are divided, or after they are joined."""
