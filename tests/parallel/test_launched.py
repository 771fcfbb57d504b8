"""What a process decides before it computes."""

import pytest
import torch

from grpo_guard.strategy.single import Single


@pytest.fixture
def precision():
    """Leave torch as it was."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("precision")
def test_float32_is_not_tf32():
    """As containers of NVIDIA have it: their environment makes torch begin with TF32."""
    torch.set_float32_matmul_precision("high")
    Single(device="cpu", threads=None).start()
    assert torch.get_float32_matmul_precision() == "highest"
