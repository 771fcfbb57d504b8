"""Learners hold a policy with its optimizer: the protocol, and the one of plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as dcp
from torch.distributed.tensor import DTensor

from grpo_guard.parallel.kernels import repeat_backward
from grpo_guard.schema import record

Optim = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""Makes an optimizer for parameters; conf/optim/ has the choices."""

ZERO_AT_FIRST = {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"}
"""States of a parameter that are 0 before the first step, by the names that PyTorch gives them."""


@record
class Optimization:
    """How a learner moves its parameters."""

    optim: Optim
    """Makes the optimizer."""
    max_norm: float
    """Largest norm of a gradient; a longer one is shortened to it before the step."""
    dtype: torch.dtype
    """Precision that the policy computes in. float16 switches the gradient scaler on."""


@runtime_checkable
class Learner(Protocol):
    """A policy with its optimizer. A strategy makes one; the training loop drives it.

    One optimizer step is a sequence of calls: `begin_microbatch`, a forward of `policy` and
    `backward` for every microbatch, then `step` once. All processes make the same calls in the same
    order.
    """

    policy: nn.Module
    """The module to call: the policy, or a wrapper with the same `forward` (DeepSpeed's engine)."""
    parameters: list[nn.Parameter]
    """The trainable parameters, in the policy's order. A process may hold only a shard of each."""

    @property
    def loss_scale(self) -> float:
        """Factor by which the scaler multiplied the loss, and so all gradients before `step`."""

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""

    def begin_microbatch(self, last: bool) -> None:
        """Prepare for the forward of a microbatch; `last` marks the final one before `step`."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`, a scalar: this microbatch's part of the process's mean loss.

        Parts are divided by the rows of the whole update, so they sum to the mean; the learner
        averages over the processes.
        """

    def step(self) -> float:
        """Clip the gradient's norm, step the optimizer, and clear the gradient.

        Returns the norm before clipping, which is inf or NaN if the gradient is. Such a gradient
        changes no parameter, except under ZeRO, which raises RunError.
        """

    def gather_weights(self) -> dict[str, Tensor]:
        """Return whole copies of the trained tensors by name, on the CPU.

        Every process must call it; the result is complete on the first.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimizer state and scaler state, to resume from.

        torch.distributed.checkpoint saves the result: tensors may be shards, of which each process
        writes its own.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from what `state_dict` returned, in a run of any number of processes."""


def trainable_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that training changes."""
    return [p for p in module.parameters() if p.requires_grad]


def _share_nothing(parameters: Sequence[nn.Parameter]) -> None:
    """Leave the gradients as they are."""


def _prepare_nothing(last: bool) -> None:
    """Prepare nothing."""


@final
class TorchLearner:
    """The learner of one process, of DDP and of FSDP, with PyTorch's optimizer and scaler.

    The scaler keeps float16 gradients from underflowing; for other dtypes it is switched off. A
    strategy passes what it does differently:

    * `share_gradients(parameters)` is called at the beginning of every step, before gradients are
      clipped.
    * `begin_microbatch(last)` is called before the forward of every microbatch.
    """

    def __init__(
        self,
        policy: nn.Module,
        recipe: Optimization,
        share_gradients: Callable[[Sequence[nn.Parameter]], None] = _share_nothing,
        begin_microbatch: Callable[[bool], None] = _prepare_nothing,
    ) -> None:
        self.policy = policy
        self.parameters = trainable_parameters(policy)
        self._max_norm = recipe.max_norm
        self._optimizer = recipe.optim(self.parameters)
        device = self.parameters[0].device.type
        self._scaler = torch.amp.GradScaler(device, enabled=recipe.dtype == torch.float16)
        self._share_gradients = share_gradients
        self._begin_microbatch = begin_microbatch

    @property
    def loss_scale(self) -> float:
        return self._scaler.get_scale()

    @property
    def lr(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def begin_microbatch(self, last: bool) -> None:
        self._begin_microbatch(last)

    def backward(self, loss: Tensor) -> None:
        with repeat_backward():
            self._scaler.scale(loss).backward()

    def step(self) -> float:
        self._share_gradients(self.parameters)
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self._max_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        # The scaler skips a step that is not finite by itself, and must see it to lower its scale.
        if norm.isfinite() or self._scaler.is_enabled():
            self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        return norm.item()

    def gather_weights(self) -> dict[str, Tensor]:
        options = dcp.StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=True
        )
        weights: Any = dcp.get_model_state_dict(self.policy, options=options)
        # A single process gets views of the live parameters, which the next step would change.
        return {name: value.detach().clone() for name, value in weights.items()}

    def state_dict(self) -> dict[str, Any]:
        has_stepped = bool(self._optimizer.state)
        options = dcp.StateDictOptions(ignore_frozen_params=True)
        policy, optimizer = dcp.get_state_dict(self.policy, self._optimizer, options=options)
        if not has_stepped:
            # Torch has made the states by a step without a gradient. Adam would count it and take
            # another first step: saving a state would change the run.
            _begin_anew(self._optimizer.state.values())
        return {"policy": policy, "optimizer": optimizer, "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        settings = [_settings_of(group) for group in self._optimizer.param_groups]
        # Frozen parameters are not in the state, so strict loading would miss them.
        options = dcp.StateDictOptions(ignore_frozen_params=True, strict=False)
        dcp.set_state_dict(
            self.policy,
            self._optimizer,
            model_state_dict=state["policy"],
            optim_state_dict=state["optimizer"],
            options=options,
        )
        # The state has the learning rate of the run that wrote it; this run has its own.
        for group, own in zip(self._optimizer.param_groups, settings, strict=True):
            group.update(own)
        self._scaler.load_state_dict(state["scaler"])


def _begin_anew(states: Iterable[Mapping[str, Any]]) -> None:
    """Set the states of parameters to what they are before a first step of Adam, AdamW or SGD."""
    for state in states:
        for name in ZERO_AT_FIRST & state.keys():
            state[name].zero_()


def _settings_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an optimizer knows of a group of parameters, beside the parameters."""
    return {name: value for name, value in group.items() if name != "params"}
