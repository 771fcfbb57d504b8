"""A graph whose float32 products are replaced computes the same as before."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from grpo_guard.pipeline.products import UseOneDNN, has_onednn

pytestmark = pytest.mark.skipif(not has_onednn(), reason="this build of torch has no oneDNN")
PRODUCT = torch.ops.grpo_guard.product.default


def add_half_the_bias(a, b, bias):
    return torch.addmm(bias, a, b, beta=0.5)


CALLS = {
    "a product": lambda a, b, bias: torch.mm(a, b),
    "with a transposed factor": lambda a, b, bias: torch.mm(a, b.t().contiguous().t()),
    "with a bias": lambda a, b, bias: torch.addmm(bias, a, b),
    "twice": lambda a, b, bias: torch.mm(torch.mm(a, b), b.t()),
}


def draw(dtype=torch.float32):
    """A matrix of 7 x 3 numbers, one of 3 x 5, and a bias of 5."""
    return [torch.randn(shape, dtype=dtype) for shape in ((7, 3), (3, 5), (5,))]


def replace(call, inputs):
    """Trace a call and replace its products; returns them too."""
    traced = make_fx(call, tracing_mode="fake")(*inputs)
    UseOneDNN()(traced.graph)
    traced.graph.lint()
    traced.recompile()
    return traced, [node.target for node in traced.graph.nodes if node.target is PRODUCT]


@pytest.mark.parametrize("call", CALLS)
def test_a_replaced_product_is_the_same(call) -> None:
    inputs = draw()
    traced, products = replace(CALLS[call], inputs)
    assert len(products) == (2 if call == "twice" else 1)
    exact = CALLS[call](*(x.double() for x in inputs))
    replaced = traced(*inputs)
    assert torch.allclose(replaced.double(), exact, rtol=1e-5, atol=1e-5)
    assert replaced.stride() == exact.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_stay_as_they_are(dtype) -> None:
    _, products = replace(CALLS["with a bias"], draw(dtype))
    assert not products


def test_a_scaled_bias_stays_as_it_is() -> None:
    inputs = draw()
    traced, products = replace(add_half_the_bias, inputs)
    assert not products
    assert torch.equal(traced(*inputs), add_half_the_bias(*inputs))
