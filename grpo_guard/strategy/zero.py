"""DeepSpeed's ZeRO: optimizer states, gradients and parameters in shards, stage by stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from grpo_guard.parallel.blocks import is_compiled
from grpo_guard.parallel.costs import Message, PolicyCalls, PolicySizes, Shares, Traffic
from grpo_guard.parallel.kernels import repeat_backward
from grpo_guard.parallel.launched import LaunchedStrategy
from grpo_guard.parallel.learner import Learner, Optimization, trainable_parameters
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.schema import RunError, component, require

SHARED_MEMORY = "deepspeed_shm_comm"
"""An operation that DeepSpeed compiles at its first start on a CPU; nothing here calls it."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's states of a parameter, by the names that PyTorch gives them."""


@component
class Zero(LaunchedStrategy):
    """Let DeepSpeed shard the policy's training over the processes; needs AdamW and no float16."""

    stage: Literal[1, 2, 3]
    """What is sharded. 1: optimizer states. 2: also gradients. 3: also parameters."""
    offload: bool
    """Keep optimizer states in the host's memory: less GPU memory, but slower."""

    @property
    def shares(self) -> Shares:
        """Divide what the stage shards among all processes."""
        gradients = self.processes if self.stage > 1 else 1
        return Shares(
            policy=self.processes if self.stage > 2 else 1,
            accumulating=gradients,
            gradients=gradients,
            moments=self.processes,
        )

    def count_traffic(self, sizes: PolicySizes, calls: PolicyCalls) -> Traffic:
        """Return the most that is exchanged: stage 3 gathers a parameter less often if it has room
        to keep it.
        """
        reductions = calls.updates if self.stage == 1 else calls.microbatches
        reduced = reductions * sizes.trained
        if self.stage < 3:
            parts = {"all-reduce": reduced, "all-gather": calls.updates * sizes.trained}
        else:
            gathers = calls.forwards + 2 * calls.microbatches
            parts = {"all-gather": gathers * sizes.stored, "reduce-scatter": reduced}
        return {Message(kind=kind, processes=self.processes): part for kind, part in parts.items()}

    def place(self, policy: nn.Module, recipe: Optimization, ranks: Ranks) -> Learner:
        """Wrap the policy in a DeepSpeed engine.

        Raises ConfigError for float16, for an optimizer other than Adam and AdamW, and for compiled
        blocks in stage 3, which gathers each layer within them.
        """
        require(
            recipe.dtype != torch.float16,
            "backbone.dtype=float16 needs loss scaling, which is off under ZeRO;"
            " use bfloat16 or strategy=fsdp",
        )
        require(
            self.stage < 3 or not is_compiled(policy),
            "backbone.compile=true does not work with strategy=zero3; use strategy=fsdp, or set it"
            " to false",
        )
        return ZeroLearner(policy, recipe, self.config(recipe))

    def config(self, recipe: Optimization) -> dict[str, Any]:
        """Return DeepSpeed's configuration.

        The training loop counts batches and divides losses, so DeepSpeed sees batches of 1;
        autocast in the policy does half precision, so DeepSpeed's own stays off.
        """
        zero: dict[str, Any] = {
            "stage": self.stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
        }
        if self.offload:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": recipe.max_norm,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 2**31,  # never
        }


@final
class ZeroLearner:
    """The learner of a DeepSpeed engine, which shares, clips and applies gradients itself."""

    def __init__(self, policy: nn.Module, recipe: Optimization, config: Mapping[str, Any]) -> None:
        import deepspeed  # takes seconds, and is on Linux only

        deepspeed.ops.__compatible_ops__[SHARED_MEMORY] = False
        self.parameters = trainable_parameters(policy)
        # The engine's own names begin with "module."; checkpoints have the policy's.
        names = {id(p): name for name, p in policy.named_parameters()}
        self._named = {names[id(p)]: p for p in self.parameters}
        self._optimizer = recipe.optim(self.parameters)
        require(
            isinstance(self._optimizer, torch.optim.Adam | torch.optim.AdamW),
            f"optim={type(self._optimizer).__name__} cannot be resumed under ZeRO; use AdamW",
        )
        self._engine: Any
        self._engine, *_ = deepspeed.initialize(
            model=policy,
            optimizer=self._optimizer,
            model_parameters=self.parameters,
            config=dict(config),
        )
        self.policy: nn.Module = self._engine
        self._create_adam_states()

    def _create_adam_states(self) -> None:
        """Create now what Adam creates at its first step: a resumed run sets it before that."""
        zero = self._engine.optimizer
        for flat in _flat_parameters(zero):
            moments = {key: torch.zeros_like(flat) for key in MOMENTS}
            self._optimizer.state[flat] = moments | {"step": torch.tensor(0.0)}
        if self._engine.zero_optimization_stage() < 3:
            zero._lazy_init_hp_params_optimizer_state()

    @property
    def loss_scale(self) -> float:
        return 1.0

    @property
    def lr(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def begin_microbatch(self, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)

    def backward(self, loss: Tensor) -> None:
        with repeat_backward():
            self._engine.backward(loss)

    def step(self) -> float:
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise RunError(
                "a gradient is not finite, and ZeRO has already applied it;"
                " resume from the last state with strategy=fsdp, which skips such steps"
            )
        return norm

    def gather_weights(self) -> dict[str, Tensor]:
        from deepspeed.runtime.zero import GatheredParameters

        weights = {}
        for name, p in self._named.items():
            with GatheredParameters([p]):
                weights[name] = p.detach().cpu().clone()
        return weights

    def state_dict(self) -> dict[str, Any]:
        """Return whole tensors, not shards, so that any strategy and world size can resume."""
        from deepspeed.utils import safe_get_full_optimizer_state

        step = next(iter(self._optimizer.state.values()))["step"]
        states = {}
        for name, p in self._named.items():
            moments = {key: _whole(safe_get_full_optimizer_state(p, key), p) for key in MOMENTS}
            states[name] = moments | {"step": step.clone()}
        return {"policy": self.gather_weights(), "optimizer": {"state": states}, "scaler": {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        states = state["optimizer"]["state"]
        for name, p in self._named.items():
            # DeepSpeed keeps two copies: the forward uses p; the step moves a float32 master copy
            # and overwrites p with it.
            with GatheredParameters([p], modifier_rank=0), torch.no_grad():
                p.copy_(state["policy"][name])
            safe_set_full_fp32_param(p, state["policy"][name])
            for key in MOMENTS:
                safe_set_full_optimizer_state(p, states[name][key], key)
        step = max(parameter_state["step"] for parameter_state in states.values())
        for flat_state in self._optimizer.state.values():
            flat_state["step"] = step.clone()


def _flat_parameters(zero: Any) -> list[Tensor]:
    """Return the flat float32 shards that the optimizer moves; stage 3 names them differently."""
    flat: list[Tensor] = (
        getattr(zero, "single_partition_of_fp32_groups", None) or zero.fp32_partitioned_groups_flat
    )
    return flat


def _whole(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """Copy a gathered value to the CPU in the whole parameter's shape; stage 3 keeps a shard."""
    return value.detach().cpu().view(getattr(parameter, "ds_shape", parameter.shape)).clone()
