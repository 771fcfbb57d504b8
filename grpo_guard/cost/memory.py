"""The most bytes that a training process holds on its device, predicted without the device.

The run's own networks are built and called without storage, on torch's meta device, while a ledger
adds up the bytes of all living tensors. What is a simple product of sizes is computed as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from grpo_guard.cost.ledger import ImitateGpu, count_bytes, count_module_bytes, measure_peak
from grpo_guard.cost.random_weights import META, Untrained, call_policy, make_inputs
from grpo_guard.experiment import Experiment
from grpo_guard.old_policy.tangent import differentiate
from grpo_guard.parallel.blocks import blocks
from grpo_guard.parallel.learner import trainable_parameters
from grpo_guard.pipeline.model import PipelineModel
from grpo_guard.pipeline.recipe import PipelineRecipe, modules
from grpo_guard.schema import record


@record
class Memory:
    """Bytes on the device of one process, by what they are for."""

    held: Mapping[str, int]
    """What is held throughout the run."""
    phases: Mapping[str, Mapping[str, int]]
    """What each phase of an iteration holds beside it, at the phase's worst moment."""
    state: int
    """Bytes of a state on the disk: trained weights, moments and average of all processes."""

    @property
    def totals(self) -> dict[str, int]:
        """All bytes that are held in each phase."""
        held = sum(self.held.values())
        return {name: held + sum(phase.values()) for name, phase in self.phases.items()}

    @property
    def worst(self) -> str:
        """The phase that holds most."""
        return max(self.totals, key=lambda name: self.totals[name])

    @property
    def peak(self) -> int:
        """The most bytes ever held."""
        return self.totals[self.worst]


def predict_memory(exp: Experiment) -> Memory:
    """Predict what an iteration holds, after the first one; raises ConfigError for an unknown
    architecture.

    The weights of published scorers count, the activations of scoring do not. Neither do the
    workspaces of kernels, the device's runtime and the fragments of its allocator.
    """
    recipe = cast(PipelineRecipe, exp.backbone)
    model = Untrained(recipe=recipe).load(META)
    held = _predict_held(exp, model)
    state = _predict_state(exp, model)
    if exp.strategy.shares.sharded_by_block:
        # From here on, the policy is what a process computes with.
        for parameter in model.pipe.transformer.parameters():
            parameter.data = parameter.data.to(model.dtype)
    # A forward that is computed again runs outside the mode of the first one.
    model.pipe.transformer._gradient_checkpointing_func = partial(
        checkpoint,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), ImitateGpu(model.dtype)),
    )
    # While prompts are encoded, the text encoders are there even with a prompt cache.
    encoding = Untrained(recipe=replace(recipe, prompt_cache=None)).load(META)
    phases = {
        "evaluation": _predict_evaluation(exp, model),
        **_predict_iteration(exp, model),
        "encode": {"text encoders": _text_encoder_bytes(encoding)},
    }
    return Memory(held=held, phases=phases, state=state)


def _predict_held(exp: Experiment, model: PipelineModel) -> dict[str, int]:
    policy = model.pipe.transformer
    policy_bytes = count_module_bytes(policy)
    trained = count_bytes(trainable_parameters(policy))
    shares = exp.strategy.shares
    evaluation = exp.eval.cost
    gathered = _gathered_bytes(model) if shares.policy > 1 else 0
    has_reference = evaluation.uses_reference or exp.kl.reference_forwards > 0
    prompts = exp.data.prompts + evaluation.encoded_prompts
    scorers = exp.reward.weight_bytes + exp.watch.weight_bytes + evaluation.resident_bytes
    return {
        "policy": policy_bytes // shares.policy + gathered,
        "autoencoder": count_module_bytes(model.pipe.vae),
        "text encoders": _text_encoder_bytes(model),
        "prompts": prompts * model.encode([""]).tokens.nbytes,
        "scorers": scorers,
        # With adapters, the reference is the policy without them.
        "reference": policy_bytes if has_reference and model.recipe.lora is None else 0,
        "moments": _count_moments(exp) * trained // shares.moments,
        "average": exp.ema.device_copies * trained // shares.policy,
    }


def _predict_state(exp: Experiment, model: PipelineModel) -> int:
    trained = count_bytes(trainable_parameters(model.pipe.transformer))
    return trained * (1 + _count_moments(exp) + exp.ema.device_copies)


def _predict_iteration(exp: Experiment, model: PipelineModel) -> dict[str, dict[str, int]]:
    """Predict the phases of an iteration without an evaluation.

    The rollout's latents are held twice while their microbatches are joined. Images wait until
    their group is complete: two groups are held at most, and a copy of one.
    """
    sizes = exp.batch_sizes
    samples = sizes.samples_here
    latent = _latent_bytes(model)
    picture = _picture_bytes(model)
    trained = torch.float32.itemsize * _count_trained(model.policy)
    shares = exp.strategy.shares

    trajectory = {"latents": (exp.steps + 2) * samples * latent}
    images = 3 * min(samples, exp.data.repeats) * picture
    rollout = _measure_rollout(model, exp.batch_sizes.microbatch, (exp.steps + 1) * latent)
    decoded = exp.batch_sizes.microbatch * picture
    decoder = _measure_decoder(model, min(model.recipe.microbatch, sizes.microbatch))
    rows = sizes.rows_per_update * sizes.updates
    update = trajectory | {
        "old means": rows * latent if exp.old_policy.stores_means else 0,
        "old weights": exp.old_policy.weight_copies * trained,
        "gradients": trained // shares.accumulating if sizes.accumulation > 1 else 0,
    }
    of_block = _block_gradient_bytes(model) if shares.sharded_by_block else 0
    return {
        "rollout": trajectory
        | {"images": images, "activations": max(rollout, trajectory["latents"])},
        "decode": trajectory
        | {"images": images, "activations": decoded + max(decoder, 2 * decoded)},
        "update": update
        | {"gradients of a block": of_block, "activations": _measure_update(exp, model)},
        **_predict_derivative(exp, model, update, trained),
        # The optimizer makes its step in a temporary as large as one of its states.
        "step": update
        | {"gradients": trained // shares.gradients, "activations": trained // shares.moments},
    }


def _predict_derivative(
    exp: Experiment, model: PipelineModel, update: Mapping[str, int], trained: int
) -> dict[str, dict[str, int]]:
    """Predict a derivative along the change of the weights, if the old policy is known by it.

    The weights in the middle and their change are held besides the old ones.
    """
    if exp.old_policy.weight_copies == 0:
        return {}
    activations = _measure_derivative(model, exp.batch_sizes.microbatch)
    weights = update["old weights"] + 2 * trained
    return {"derivative": {**update, "old weights": weights, "activations": activations}}


def _predict_evaluation(exp: Experiment, model: PipelineModel) -> dict[str, int]:
    """Predict the worst of drawing all paths, joining them, and decoding them to images.

    Images that are decoded wait for the last ones. All are there three times while they are
    clamped.
    """
    evaluation = exp.eval.cost
    model = model.at(evaluation.resolution or model.recipe.resolution)
    samples = evaluation.prompts // exp.strategy.processes
    path = (evaluation.steps + 1) * _latent_bytes(model)
    paths = samples * path
    images = samples * _picture_bytes(model)
    rollout = _measure_rollout(model, min(evaluation.microbatch, samples), path)
    decode = images + _measure_decoder(model, min(model.recipe.microbatch, samples))
    scoring = images + evaluation.visiting_bytes
    return {"latents": paths, "activations": max(rollout, paths, decode, 3 * images, scoring)}


@torch.no_grad()
def _measure_rollout(model: PipelineModel, rows: int, path: int) -> int:
    """Measure a microbatch of the rollout: its paths, and a forward or a copy of the paths."""
    forward = measure_peak(model.policy, lambda: _call_as_on_gpu(model, rows))
    return rows * path + max(forward, rows * path)


@torch.no_grad()
def _measure_decoder(model: PipelineModel, rows: int) -> int:
    """Measure the decoding of some latents at a time."""
    latents = torch.empty(rows, *model.shape, device=META)
    rescaled = model.rescale_latents(model.unpack_latents(latents)).to(model.pipe.vae.dtype)

    def decode() -> None:
        with ImitateGpu(torch.float32):
            model.run_decoder(rescaled)

    return measure_peak(model.pipe.vae, decode, rescaled)


def _measure_update(exp: Experiment, model: PipelineModel) -> int:
    """Measure forward and backward of a microbatch, with the reference's forwards in between."""
    weights = trainable_parameters(model.policy)
    # Sharding keeps the whole gradients of one block at a time, which are counted apart.
    have_gradients = exp.batch_sizes.accumulation > 1 or exp.strategy.shares.sharded_by_block
    for parameter in weights:
        parameter.grad = torch.empty_like(parameter) if have_gradients else None

    def work() -> None:
        v = _call_as_on_gpu(model, exp.batch_sizes.microbatch)
        with torch.no_grad():
            # The policy's activations, and what the references return, are held until backward.
            kept = [
                _call_as_on_gpu(model, exp.batch_sizes.microbatch)
                for _ in range(exp.kl.reference_forwards)
            ]
        v.sum().backward()
        del kept

    return measure_peak(model.policy, work, *(p.grad for p in weights if p.grad is not None))


def _measure_derivative(model: PipelineModel, rows: int) -> int:
    """Measure a forward of a microbatch with its derivative along all trained weights."""
    parameters = model.policy.named_parameters()
    weights = {name: p.detach() for name, p in parameters if p.requires_grad}
    inputs = make_inputs(model, rows)

    def work() -> None:
        with ImitateGpu(model.dtype, fused_attention=False):
            differentiate(model.policy, weights, weights, *inputs)

    return measure_peak(model.policy, work)


def _call_as_on_gpu(model: PipelineModel, rows: int) -> Tensor:
    with ImitateGpu(model.dtype):
        return call_policy(model, rows)


def _latent_bytes(model: PipelineModel) -> int:
    return torch.empty(1, *model.shape, device=META).nbytes


def _picture_bytes(model: PipelineModel) -> int:
    channels, itemsize = 3, torch.float32.itemsize
    return channels * itemsize * model.recipe.resolution**2


def _text_encoder_bytes(model: PipelineModel) -> int:
    return sum(
        count_module_bytes(part)
        for name, part in modules(model.pipe).items()
        if name.startswith("text_encoder")
    )


def _gathered_bytes(model: PipelineModel) -> int:
    """Return what sharding gathers whole: two blocks, one of them ahead of its use, and all that
    is in no block.
    """
    policy = model.pipe.transformer
    counts = [sum(p.numel() for p in block.parameters()) for block in blocks(policy)]
    everywhere: int = sum(p.numel() for p in policy.parameters())
    return model.dtype.itemsize * (everywhere - sum(counts) + 2 * max(counts))


def _block_gradient_bytes(model: PipelineModel) -> int:
    """Return what sharding holds of the gradients of one unit, a block or all that is in none.

    They are there as they were computed, and in the float32 copy that is being averaged.
    """
    policy = model.pipe.transformer
    in_blocks = [_count_trained(block) for block in blocks(policy)]
    largest = max(*in_blocks, _count_trained(policy) - sum(in_blocks))
    return largest * (model.dtype.itemsize + torch.float32.itemsize)


def _count_trained(module: nn.Module) -> int:
    return sum(p.numel() for p in trainable_parameters(module))


def _count_moments(exp: Experiment) -> int:
    """Count the optimizer's states that are as large as their parameter: 2 for AdamW."""
    parameter = nn.Parameter(torch.zeros(8))
    parameter.grad = torch.zeros(8)
    optimizer = exp.optim([parameter])
    optimizer.step()
    return sum(x.shape == parameter.shape for x in optimizer.state[parameter].values())
