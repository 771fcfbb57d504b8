"""The most bytes that a process of training holds on its device, predicted without the device.

The very networks of a run are made and called without storage (torch's meta device), while a ledger adds up the bytes
of all tensors that are alive. What is simple enough to be a product of numbers is one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import is_dataclass, replace
from functools import partial
from typing import Any, cast, no_type_check

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.checkpoint import checkpoint

from grpo_guard.cost.random_weights import KNOWN, Untrained
from grpo_guard.ema.average import Average
from grpo_guard.eval.heldout import HeldOut
from grpo_guard.experiment import Experiment
from grpo_guard.kl.none import NoKl
from grpo_guard.old_policy.replay import Replay
from grpo_guard.parallel.learner import trainable_parameters
from grpo_guard.pipeline.model import Checkpoint, PipelineModel, modules
from grpo_guard.reward.remote import Remote
from grpo_guard.strategy.fsdp import Fsdp, blocks
from grpo_guard.strategy.zero import Zero
from grpo_guard.types import record

META = torch.device("meta")
NARROW = {F.linear, F.conv2d, torch.matmul, torch.bmm, torch.einsum, F.scaled_dot_product_attention}
WIDE = {F.layer_norm, F.group_norm, F.softmax, torch.pow, Tensor.pow, torch.rsqrt, Tensor.softmax}


@record
class Memory:
    """Bytes of what is held throughout, and of what each phase of an iteration holds beside it at its worst."""

    held: Mapping[str, int]
    phases: Mapping[str, Mapping[str, int]]

    @property
    def totals(self) -> dict[str, int]:
        """All that is held in each phase."""
        return {
            name: sum(self.held.values()) + sum(phase.values())
            for name, phase in self.phases.items()
        }

    @property
    def worst(self) -> str:
        """The phase that holds most."""
        return max(self.totals, key=lambda name: self.totals[name])

    @property
    def peak(self) -> int:
        """The most bytes ever held."""
        return self.totals[self.worst]


@record
class Shares:
    """Among how many processes a strategy divides the policy, gradients while microbatches add up and when they have,
    and what the optimizer keeps.
    """

    policy: int
    added: int
    gradients: int
    moments: int


class Ledger(TorchDispatchMode):
    """The bytes of all storages that are alive, and the most there have been: of those given and of those made.

    What is called for every operation is left out of type checks, which would take longer than the operations.
    """

    def __init__(self, given: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._known: dict[int, weakref.ref] = {}
        self.live: int = 0
        self.peak: int = 0
        self.add(given)

    def add(self, given: Iterable[Tensor]) -> None:
        """Count tensors that were made elsewhere."""
        for x in given:
            self._enter(x.untyped_storage())

    def begin(self) -> None:
        """Forget the most there has been before now."""
        self.peak = self.live

    @no_type_check
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_iter(result):
            if isinstance(x, Tensor):
                self._enter(x.untyped_storage())
        return result

    @no_type_check
    def _enter(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known[key] = weakref.ref(storage, lambda _: self._leave(key, size))
            self.live += size
            self.peak = max(self.peak, self.live)

    @no_type_check
    def _leave(self, key: int, size: int) -> None:
        del self._known[key]
        self.live -= size


class AsOnGpu(TorchFunctionMode):
    """Calls as a GPU makes them: attention fused and, for a dtype below float32, in the types of its autocast.

    A weight's copy in that dtype is kept until the mode ends, as autocast keeps it.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype: torch.dtype = dtype
        self._copies = dict[int, Tensor]()

    @no_type_check
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, kwargs or {})
        if func in NARROW and self.dtype != torch.float32:
            given = tree_map(self._narrow, given)
        if func in WIDE and self.dtype != torch.float32:
            given = tree_map(lambda x: x.float() if isinstance(x, Tensor) else x, given)
        return (_fused if func is F.scaled_dot_product_attention else func)(*given[0], **given[1])

    @no_type_check
    def _narrow(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dtype in (self.dtype, torch.bool):
            return x
        kept = x.is_leaf and x.requires_grad
        return self._copies.setdefault(id(x), x.to(self.dtype)) if kept else x.to(self.dtype)


def _fused(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: object
) -> Tensor:
    """Attention that keeps its inputs, its output and a number per query, as a GPU's kernels do."""
    return cast(
        Tensor,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=attn_mask
        )[0],
    )


def predict(exp: Experiment) -> Memory:
    """What an iteration but the first holds; raises ConfigError for unknown architectures.

    Published scorers are counted, their work is not; nor is what kernels take for themselves, nor the device's runtime
    and the fragments of its allocator.
    """
    recipe = cast(Checkpoint, exp.backbone)
    model = Untrained(recipe=recipe).load(META)
    again = partial(
        checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), AsOnGpu(model.dtype))
    )
    model.pipe.transformer._gradient_checkpointing_func = again
    visit = {
        "text encoders": _encoders(Untrained(recipe=replace(recipe, prompt_cache=None)).load(META))
    }
    return Memory(held=_held(exp, model), phases=_phases(exp, model) | {"encode": visit})


def size(module: nn.Module) -> int:
    """Bytes of a network's weights and buffers."""
    return weight([*module.parameters(), *module.buffers()])


def weight(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(x.nbytes for x in tensors)


def _held(exp: Experiment, model: PipelineModel) -> dict[str, int]:
    policy, shares, held_out = model.pipe.transformer, _shares(exp), cast(HeldOut, exp.eval)
    trained, judges = (
        weight(trainable_parameters(policy)),
        held_out.gold.values() if held_out.keep_gold else (),
    )
    compared = model.recipe.lora is None and (held_out.kl or not isinstance(exp.kl, NoKl))
    asked = exp.data.prompts + held_out.prompts
    return {
        "policy": size(policy) // shares.policy + (_gathered(model) if shares.policy > 1 else 0),
        "autoencoder": size(model.pipe.vae),
        "text encoders": _encoders(model),
        "prompts": asked * model.encode([""]).tokens.nbytes,
        "scorers": _scorer(exp.reward) + _scorer(exp.watch) + sum(map(_scorer, judges)),
        "reference": size(policy) if compared else 0,
        "moments": _moments(exp) * trained // shares.moments,
        "average": trained // shares.policy
        if isinstance(exp.ema, Average) and not exp.ema.on_cpu
        else 0,
    }


def _phases(exp: Experiment, model: PipelineModel) -> dict[str, dict[str, int]]:
    """Joining microbatches holds latents twice; images wait for their group: two groups are held, and a copy of one."""
    recipe, batch_sizes, count = model.recipe, exp.batch_sizes, exp.batch_sizes.samples_here
    picture, latent = 12 * recipe.resolution**2, weight([_latents(model, 1)])
    decoded, images = exp.microbatch * picture, 3 * min(count, exp.data.repeats) * picture
    kept = {"latents": (exp.steps + 1) * count * latent + count * latent}
    forward = _walking(model, exp.microbatch, (exp.steps + 1) * latent)
    old = (
        batch_sizes.rows_per_update * batch_sizes.updates * latent
        if isinstance(exp.old_policy, Replay)
        else 0
    )
    trained, shares = weight(trainable_parameters(model.policy)), _shares(exp)
    update = kept | {
        "old means": old,
        "gradients": trained // shares.added if batch_sizes.accumulation > 1 else 0,
    }
    return {
        "evaluation": _evaluation(exp, model),
        "rollout": kept | {"images": images, "activations": max(forward, kept["latents"])},
        "decode": kept
        | {"images": images, "activations": decoded + max(_decoding(model), 2 * decoded)},
        "update": update | {"activations": _backward(exp, model)},
        "step": update
        | {"gradients": trained // shares.gradients, "activations": trained // shares.moments},
    }


def _evaluation(exp: Experiment, model: PipelineModel) -> dict[str, int]:
    """Paths are walked, joined, and decoded, all of them, and made images of: three copies at the worst."""
    held_out = cast(HeldOut, exp.eval)
    count = held_out.prompts // exp.strategy.processes
    picture, path = (
        12 * model.recipe.resolution**2,
        (held_out.steps + 1) * weight([_latents(model, 1)]),
    )
    visitor = 0 if held_out.keep_gold else max(map(_scorer, held_out.gold.values()), default=0)
    joined, images = count * path, count * picture
    walking = _walking(model, min(held_out.microbatch, count), path)
    return {"latents": joined, "activations": max(walking, joined, 3 * images, images + visitor)}


def _scorer(judge: object, dtype: str = "float32") -> int:
    """Bytes of the weights of the published scorers in a reward; none of one that is served elsewhere."""
    given = _settings(judge)
    dtype = given.get("dtype", dtype)
    own: int = KNOWN["scorers"].get(str(given.get("model")), 0) * getattr(torch, dtype).itemsize
    return own + sum(_scorer(part, dtype) for part in given.values())


def _settings(judge: object) -> Mapping[str, Any]:
    """What a reward, or a part of one, was made with."""
    if isinstance(judge, partial):
        return judge.keywords
    if isinstance(judge, Mapping):
        return judge
    return vars(judge) if is_dataclass(judge) and not isinstance(judge, Remote) else {}


def _encoders(model: PipelineModel) -> int:
    return sum(
        size(part) for name, part in modules(model.pipe).items() if name.startswith("text_encoder")
    )


def _latents(model: PipelineModel, rows: int) -> Tensor:
    return torch.empty(rows, *model.shape, device=META)


def _asked(model: PipelineModel, rows: int) -> Tensor:
    """Velocities of some rows, as the policy is asked for them."""
    with AsOnGpu(model.dtype):
        condition = model.encode([""])[torch.zeros(rows, dtype=torch.long)]
        v: Tensor = model.policy(_latents(model, rows), torch.empty(rows, device=META), condition)
    return v


def _peak(module: nn.Module, work: Callable[[], object], *given: Tensor) -> int:
    """The most bytes that some work holds beside a network and what is given."""
    with Ledger([*module.parameters(), *module.buffers(), *given]) as ledger:
        before = ledger.live
        work()
    return int(ledger.peak - before)


@torch.no_grad()
def _walking(model: PipelineModel, rows: int, path: int) -> int:
    """Beside the latents of their paths, a forward of some rows or a copy of these latents."""
    return rows * path + max(_peak(model.policy, lambda: _asked(model, rows)), rows * path)


@torch.no_grad()
def _decoding(model: PipelineModel) -> int:
    latents = model.scaled(model.unpacked(_latents(model, model.recipe.microbatch))).to(
        model.pipe.vae.dtype
    )

    def decode() -> None:
        with AsOnGpu(torch.float32):
            model.decoded(latents)

    return _peak(model.pipe.vae, decode, latents)


def _backward(exp: Experiment, model: PipelineModel) -> int:
    """Of one microbatch; a reference is asked while the policy's activations are held."""
    weights = trainable_parameters(model.policy)
    for parameter in weights:
        parameter.grad = torch.empty_like(parameter) if exp.batch_sizes.accumulation > 1 else None

    def work() -> None:
        v = _asked(model, exp.microbatch)
        with torch.no_grad():
            _ = None if isinstance(exp.kl, NoKl) else _asked(model, exp.microbatch)
        v.sum().backward()

    return _peak(model.policy, work, *(p.grad for p in weights if p.grad is not None))


def _shares(exp: Experiment) -> Shares:
    strategy = exp.strategy
    if isinstance(strategy, Fsdp):
        count = strategy.processes // strategy.replicas
        return Shares(
            policy=count,
            added=count if strategy.reduce == "microbatch" else 1,
            gradients=count,
            moments=count,
        )
    stage, count = strategy.stage if isinstance(strategy, Zero) else 0, strategy.processes
    policy, gradients, moments = (count if stage > least else 1 for least in (2, 1, 0))
    return Shares(policy=policy, added=gradients, gradients=gradients, moments=moments)


def _gathered(model: PipelineModel) -> int:
    """Two blocks, one of them fetched ahead, and what belongs to none, whole, in what the policy computes in."""
    policy = model.pipe.transformer
    counts = [sum(p.numel() for p in block.parameters()) for block in blocks(policy)]
    numbers: int = sum(p.numel() for p in policy.parameters()) - sum(counts) + 2 * max(counts)
    return model.dtype.itemsize * numbers


def _moments(exp: Experiment) -> int:
    """What the optimizer keeps of a parameter, in parameters."""
    parameter = nn.Parameter(torch.zeros(8))
    optimizer, parameter.grad = exp.optim([parameter]), torch.zeros(8)
    optimizer.step()
    return sum(x.shape == parameter.shape for x in optimizer.state[parameter].values())
