"""Operations against a count of layers, and how those of an iteration are put together."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from grpo_guard.command.benches.memory import TINY, compose_experiment
from grpo_guard.command.benches.throughput import describe_iteration, make_rows
from grpo_guard.cost.flops import Work, count_flops_per_row, find_peak, predict_work
from grpo_guard.cost.random_weights import META, Untrained


class AttentionCounter(TorchFunctionMode):
    """Counts the operations of QK' and of its product with V."""

    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            query, key, value = args or (kwargs[name] for name in ("query", "key", "value"))
            self.operations += (
                2 * query.numel() * key.shape[-2] + 2 * query[..., 0].numel() * value[0, 0].numel()
            )
        return func(*args, **(kwargs or {}))


def count_by_layers(model):
    """Count 2 m n k for every matrix, and the same for every position of a convolution."""
    operations = []

    def hook(layer, inputs, result):
        if isinstance(layer, nn.Linear):
            operations.append(2 * inputs[0].numel() * result.shape[-1])
        else:
            kernel = layer.in_channels * math.prod(layer.kernel_size)
            operations.append(2 * result.numel() * kernel)

    hooks = [
        layer.register_forward_hook(hook)
        for layer in model.policy.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    condition = model.encode([""])[torch.zeros(1, dtype=torch.long)]
    with AttentionCounter() as attention, torch.no_grad():
        model.policy(torch.zeros(1, *model.shape), torch.ones(1), condition)
    for handle in hooks:
        handle.remove()
    return sum(operations) + attention.operations


@pytest.mark.parametrize("name", ["sd3_tiny", "sd3_tiny_lora", "flux_tiny"])
def test_a_forward_is_its_layers(name, choice):
    recipe = Untrained(recipe=choice("backbone", name))
    forward, both = count_flops_per_row(recipe.load(META))
    assert forward == count_by_layers(recipe.load(torch.device("cpu")))
    least, most = (2, 2.3) if "lora" in name else (2.95, 3)
    assert least < both / forward < most


def test_an_iteration_is_its_rows():
    """2 prompts of 8 images, 3 steps of which 2 are trained."""
    exp = compose_experiment(TINY)
    work = predict_work(exp)
    forward, both = count_flops_per_row(Untrained(recipe=exp.backbone).load(META))
    assert (work.rollout, work.update) == (16 * 3 * forward, 32 * both)
    for override in ("kl=x", "old_policy=replay"):
        more = predict_work(compose_experiment([*TINY, override]))
        assert more.update == work.update + 32 * forward
    half = predict_work(compose_experiment([*TINY, "strategy=ddp", "strategy.processes=2"]))
    assert (half.rollout, half.update) == (work.rollout / 2, work.update / 2)


def test_guidance_doubles_forwards_and_recomputed_ones_do_not_count():
    one, two = (
        predict_work(compose_experiment([*TINY, f"backbone.guidance={scale}"]))
        for scale in (1.0, 3.0)
    )
    assert two.rollout == 2 * one.rollout
    saving = ["backbone.gradient_checkpointing=true", "backbone.dtype=bfloat16"]
    recomputed = predict_work(compose_experiment([*TINY, *saving]))
    assert (recomputed.rollout, recomputed.update) == (one.rollout, one.update)


def test_rows_are_medians():
    seconds = [
        {"rollout": 2.0, "update": 1.0},
        {"rollout": 9.0, "update": 3.0},
        {"rollout": 4.0, "update": 2.0},
    ]
    work = Work(rollout=8e12, update=6e12)
    assert make_rows(work, 12, seconds, 10e12) == {
        "rollout": ("4.00", "3", "8", "2", "20.0%"),
        "update": ("2.00", "6", "6", "3", "30.0%"),
        "both": ("6.00", "2", "14", "2.33", "23.3%"),
    }
    assert make_rows(work, 12, seconds, None)["both"][-1] == "-"


def test_iterations_are_told_as_they_end():
    seconds = {"rollout": 8.0, "update": 20.125}
    assert describe_iteration(0, seconds) == (
        "iteration 0: rollout 8.00 s, update 20.12 s (does not count)"
    )
    assert describe_iteration(1, seconds) == "iteration 1: rollout 8.00 s, update 20.12 s"


def test_devices_are_known_by_their_names():
    assert find_peak("NVIDIA H100 80GB HBM3") == 989e12
    assert find_peak("NVIDIA H100 PCIe") == 756e12
    assert find_peak("NVIDIA H100 NVL") == 835e12
    assert find_peak("NVIDIA GH200 480GB") == 989e12
    assert find_peak("CPU") is None
