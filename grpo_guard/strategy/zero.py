"""DeepSpeed's ZeRO: optimizer states, gradients and parameters in shards, stage by stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from grpo_guard.parallel.learner import Learner, Optimization, trainable_parameters
from grpo_guard.parallel.ranks import LaunchedStrategy, Ranks
from grpo_guard.types import RunError, component, require


class _Engine(Learner):
    """The policy as a DeepSpeed engine."""

    def __init__(self, policy: nn.Module, recipe: Optimization, config: Mapping[str, Any]) -> None:
        import deepspeed

        deepspeed.ops.__compatible_ops__[SHARED_MEMORY] = False
        self.parameters = trainable_parameters(policy)
        names = {id(p): name for name, p in policy.named_parameters()}
        self.named = {names[id(p)]: p for p in self.parameters}
        optimizer = recipe.optim(self.parameters)
        kinds = torch.optim.Adam, torch.optim.AdamW
        require(
            isinstance(optimizer, kinds),
            f"optim={type(optimizer).__name__} is not resumable by ZeRO; use AdamW",
        )
        engine, *_ = deepspeed.initialize(
            model=policy, optimizer=optimizer, model_parameters=self.parameters, config=dict(config)
        )
        self.engine: Any = engine
        self.policy, self.optimizer = self.engine, optimizer
        self._begin()

    def _begin(self) -> None:
        """Give Adam the states that it would make at its first step, so that they can be read and set before."""
        zero = self.engine.optimizer
        for flat in _shards(zero):
            self.optimizer.state[flat] = {key: torch.zeros_like(flat) for key in MOMENTS} | {
                "step": torch.tensor(0.0)
            }
        if self.engine.zero_optimization_stage() < 3:
            zero._lazy_init_hp_params_optimizer_state()

    @property
    def scale(self) -> float:
        return 1.0

    def begin_microbatch(self, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def step(self) -> float:
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise RunError(
                "a gradient is not finite, and ZeRO has moved by it; go on from the last state with fsdp"
            )
        return norm

    def weights(self) -> dict[str, Tensor]:
        from deepspeed.runtime.zero import GatheredParameters

        found = {}
        for name, p in self.named.items():
            with GatheredParameters([p]):
                found[name] = p.detach().cpu().clone()
        return found

    def state(self) -> dict[str, Any]:
        """Whole tensors, as a single process has them: they fit any number of processes, and any strategy."""
        from deepspeed.utils import safe_get_full_optimizer_state

        step = next(iter(self.optimizer.state.values()))["step"]
        moments = {
            name: {key: _whole(safe_get_full_optimizer_state(p, key), p) for key in MOMENTS}
            | {"step": step.clone()}
            for name, p in self.named.items()
        }
        return {"policy": self.weights(), "optimizer": {"state": moments}, "scaler": {}}

    def load(self, state: Mapping[str, Any]) -> None:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        moments = state["optimizer"]["state"]
        for name, p in self.named.items():
            with GatheredParameters([p], modifier_rank=0), torch.no_grad():
                p.copy_(state["policy"][name])  # what the next rollout uses
            safe_set_full_fp32_param(p, state["policy"][name])  # what the next step moves
            for key in MOMENTS:
                safe_set_full_optimizer_state(p, moments[name][key], key)
        steps = max(moment["step"] for moment in moments.values())
        for kept in self.optimizer.state.values():
            kept["step"] = steps.clone()


SHARED_MEMORY = "deepspeed_shm_comm"
"""An operation that nothing here calls, and that DeepSpeed else compiles at the first start on a CPU."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam keeps of a parameter."""


def _shards(zero: Any) -> list[Tensor]:
    """The flat float32 parameters that the optimizer of a stage moves."""
    flat: list[Tensor] = (
        getattr(zero, "single_partition_of_fp32_groups", None) or zero.fp32_partitioned_groups_flat
    )
    return flat


def _whole(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """A gathered value in the shape of the parameter, of which only a shard may be here."""
    return value.detach().cpu().view(getattr(parameter, "ds_shape", parameter.shape)).clone()


@component
class Zero(LaunchedStrategy):
    """`stage` 1 shards optimizer states, 2 gradients too, 3 parameters too.

    `offload` keeps optimizer states in the host's memory.
    """

    stage: Literal[1, 2, 3]
    offload: bool

    def place(self, policy: nn.Module, recipe: Optimization, ranks: Ranks) -> Learner:
        """The policy in the hands of DeepSpeed, which composes its own configuration from ours."""
        require(
            recipe.dtype != torch.float16,
            "backbone.dtype=float16 is not scaled by ZeRO; use bfloat16 or strategy=fsdp",
        )
        return _Engine(policy, recipe, self.config(recipe))

    def config(self, recipe: Optimization) -> dict[str, Any]:
        """DeepSpeed's configuration; batches are counted by the loop, half precision is autocast's."""
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
            "steps_per_print": 2**31,
        }
