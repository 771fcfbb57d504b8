"""Operations against a count of layers, and how those of an iteration are put together."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from benches.memory import TINY, composed
from benches.throughput import lines
from grpo_guard.cost.flops import META, Work, of_a_row, peak, predict
from grpo_guard.cost.random_weights import Untrained


class Attended(TorchFunctionMode):
    """Counts QK' and its product with V."""

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


def by_layers(model):
    """2 m n k for every matrix, kernel by kernel for a convolution."""
    found = []

    def hook(layer, given, result):
        found.append(
            2 * given[0].numel() * result.shape[-1]
            if isinstance(layer, nn.Linear)
            else conv(layer, result)
        )

    def conv(layer, result):
        return 2 * result.numel() * layer.in_channels * math.prod(layer.kernel_size)

    hooks = [
        layer.register_forward_hook(hook)
        for layer in model.policy.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    condition = model.encode([""])[torch.zeros(1, dtype=torch.long)]
    with Attended() as attended, torch.no_grad():
        model.policy(torch.zeros(1, *model.shape), torch.ones(1), condition)
    for each in hooks:
        each.remove()
    return sum(found) + attended.operations


@pytest.mark.parametrize("name", ["sd3_tiny", "sd3_tiny_lora", "flux_tiny"])
def test_a_forward_is_its_layers(name, choice):
    recipe = Untrained(recipe=choice("backbone", name))
    forward, both = of_a_row(recipe.load(META))
    assert forward == by_layers(recipe.load(torch.device("cpu")))
    assert (2 if "lora" in name else 2.95) < both / forward < (2.3 if "lora" in name else 3)


def test_an_iteration_is_its_rows():
    """2 prompts of 8 images, 3 steps of which 2 are trained."""
    one = predict(composed(TINY))
    forward, both = of_a_row(Untrained(recipe=composed(TINY).backbone).load(META))
    assert (one.rollout, one.update) == (16 * 3 * forward, 32 * both)
    for again in ("kl=x", "old_policy=replay"):
        assert predict(composed([*TINY, again])).update == one.update + 32 * forward
    half = predict(composed([*TINY, "strategy=ddp", "strategy.processes=2"]))
    assert (half.rollout, half.update) == (one.rollout / 2, one.update / 2)


def test_guidance_is_two_forwards_and_what_is_recomputed_is_not_counted():
    one, two = (predict(composed([*TINY, f"backbone.guidance={scale}"])) for scale in (1.0, 3.0))
    assert two.rollout == 2 * one.rollout
    again = predict(
        composed([*TINY, "backbone.gradient_checkpointing=true", "backbone.dtype=bfloat16"])
    )
    assert (again.rollout, again.update) == (one.rollout, one.update)


def test_a_table_is_of_medians():
    seconds = [
        {"rollout": 2.0, "update": 1.0},
        {"rollout": 9.0, "update": 3.0},
        {"rollout": 4.0, "update": 2.0},
    ]
    found = lines(Work(rollout=8e12, update=6e12), 12, seconds, 10e12)
    assert found == {
        "rollout": ("4.00", "3", "8", "2", "20.0%"),
        "update": ("2.00", "6", "6", "3", "30.0%"),
        "both": ("6.00", "2", "14", "2.33", "23.3%"),
    }
    assert lines(Work(rollout=8e12, update=6e12), 12, seconds, None)["both"][-1] == "-"


def test_devices_are_known_by_their_names():
    assert peak("NVIDIA H100 80GB HBM3") == 989e12
    assert peak("CPU") is None
