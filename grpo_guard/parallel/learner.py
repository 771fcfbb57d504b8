"""What moves a policy: its optimizer, whoever holds the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as dcp
from torch.distributed.tensor import DTensor

from grpo_guard.types import record

Optim = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""Makes an optimizer of parameters."""


@record
class Optimization:
    """How parameters move: `max_norm` bounds the gradient's norm, `dtype` is what the policy computes in."""

    optim: Optim
    max_norm: float
    dtype: torch.dtype


def trainable_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that training changes."""
    return [p for p in module.parameters() if p.requires_grad]


class Learner:
    """A policy's parameters and their optimizer, in one process or as torch shares them out among several.

    A gradient scaler keeps float16 gradients from vanishing and does nothing for other dtypes.
    """

    def __init__(self, policy: nn.Module, recipe: Optimization) -> None:
        self.policy, self.parameters, self.max_norm = (
            policy,
            trainable_parameters(policy),
            recipe.max_norm,
        )
        self.optimizer = recipe.optim(self.parameters)
        device = self.parameters[0].device.type
        self.scaler = torch.amp.GradScaler(device, enabled=recipe.dtype == torch.float16)

    @property
    def scale(self) -> float:
        """By which gradients are larger than they are, before a step."""
        return self.scaler.get_scale()

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def begin_microbatch(self, last: bool) -> None:
        """A microbatch is about to be forwarded; with the `last` of a step, gradients are shared."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a process's part of the mean loss."""
        self.scaler.scale(loss).backward()

    def step(self) -> float:
        """Clip the gradient's norm, move, and forget the gradient; a gradient that is not finite moves nothing.

        Returns the norm before clipping.
        """
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if norm.isfinite() or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return norm.item()

    def weights(self) -> dict[str, Tensor]:
        """Whole trained tensors by name, on the host of the first process; all processes must ask."""
        options = dcp.StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=True
        )
        found: Any = dcp.get_model_state_dict(self.policy, options=options)
        return {name: value.detach().clone() for name, value in found.items()}

    def state(self) -> dict[str, Any]:
        """What a run goes on from, as torch.distributed.checkpoint saves it: each process its own part."""
        options = dcp.StateDictOptions(ignore_frozen_params=True)
        policy, optimizer = dcp.get_state_dict(self.policy, self.optimizer, options=options)
        return {"policy": policy, "optimizer": optimizer, "scaler": self.scaler.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, of however many processes."""
        options = dcp.StateDictOptions(ignore_frozen_params=True, strict=False)
        dcp.set_state_dict(
            self.policy,
            self.optimizer,
            model_state_dict=state["policy"],
            optim_state_dict=state["optimizer"],
            options=options,
        )
        self.scaler.load_state_dict(state["scaler"])
