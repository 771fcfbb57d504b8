"""Torch's global choices of kernels, as a run makes them."""

from functools import partial

import pytest
import torch
from torch import nn

from grpo_guard.console.drawing import choose_device
from grpo_guard.parallel.learner import Optimization, TorchLearner
from grpo_guard.reward.statistics import ImageStatistics
from grpo_guard.serve import Service
from grpo_guard.strategy.single import Single


@pytest.fixture(autouse=True)
def usual_kernels(monkeypatch):
    """Leave torch and the environment as they were."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    yield
    if hasattr(torch.backends, "fp32_precision"):
        torch.backends.fp32_precision = "none"
    Single(device="cpu", threads=None).start()
    torch.use_deterministic_algorithms(False)


def begin_with_tf32():
    """Bring torch to the state that it begins with in containers of NVIDIA, and to a wider one.

    Convolutions and recurrent layers take TF32 by torch's own default.
    """
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    if hasattr(torch.backends, "fp32_precision"):
        torch.backends.fp32_precision = "tf32"


def serve_a_reward():
    """Open a server of a reward, which starts without a strategy."""
    served = Service(
        reward=ImageStatistics(period=8), name="statistics", device="cpu", probe={"text": "a"},
        host="127.0.0.1", port=0, token=None, batch=1, wait=0, connections=1, held=1,
        limit=10**6, timeout=1.0,
    )  # fmt: skip
    served.open().bound_socket.close()


@pytest.mark.parametrize(
    "start",
    [
        Single(device="cpu", threads=None).start,
        partial(choose_device, "cpu"),
        serve_a_reward,
    ],
    ids=["a run", "pictures of a checkpoint", "a server"],
)
def test_float32_is_not_tf32(start):
    """Matrices, convolutions and recurrent layers of float32; torch can be asked for each."""
    begin_with_tf32()
    start()
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    for operation in ("conv", "rnn"):
        setting = getattr(torch.backends.cudnn, operation, None)
        assert setting is None or setting.fp32_precision == "ieee"


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
