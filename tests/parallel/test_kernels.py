"""Torch's global choices of kernels, as a run makes them."""

from functools import partial

import pytest
import torch
from torch import nn

from grpo_guard.parallel.learner import Optimization, TorchLearner
from grpo_guard.strategy.single import Single


@pytest.fixture(autouse=True)
def usual_kernels(monkeypatch):
    """Leave torch and the environment as they were."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)
    Single(device="cpu", threads=None).start()
    torch.use_deterministic_algorithms(False)


def test_float32_is_not_tf32():
    """As containers of NVIDIA have it: their environment makes torch begin with TF32."""
    torch.set_float32_matmul_precision("high")
    Single(device="cpu", threads=None).start()
    assert torch.get_float32_matmul_precision() == "highest"


class Observe(torch.autograd.Function):
    """The identity, which notes how torch chooses kernels while it goes backward."""

    @staticmethod
    def forward(ctx, x, seen):
        ctx.seen = seen
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.seen += [describe_choice()]
        return gradient, None


def describe_choice():
    """Say what torch does about operations whose numbers differ each time."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    return "any kernel" if not enabled else "warns" if warns else "refuses"


@pytest.mark.parametrize(
    ("deterministic", "forward", "backward"),
    [(False, "any kernel", "any kernel"), (True, "warns", "refuses")],
)
def test_attention_repeats_its_backward_only_where_torch_refuses(deterministic, forward, backward):
    """Flash attention, for one, only warns that it does not. cuDNN's cannot."""
    Single(device="cpu", threads=None, deterministic=deterministic).start()
    assert torch.backends.cuda.cudnn_sdp_enabled() is not deterministic
    adamw = partial(torch.optim.AdamW, lr=1e-3)
    recipe = Optimization(optim=adamw, max_norm=1.0, dtype=torch.float32)
    policy = nn.Linear(2, 1)
    learner = TorchLearner(policy, recipe)
    seen = []
    learner.backward(Observe.apply(policy(torch.ones(1, 2)), seen).sum())
    assert seen == [backward]
    assert describe_choice() == forward
