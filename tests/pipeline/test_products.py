"""Compiled code multiplies float32 matrices by oneDNN, and computes the same as before."""

import copy
import shutil

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code
from torch.fx.experimental.proxy_tensor import make_fx

from grpo_guard.pipeline import compiling
from grpo_guard.pipeline.products import UseOneDNN, has_onednn

pytestmark = [
    pytest.mark.skipif(not has_onednn(), reason="this build of torch has no oneDNN"),
    # torch's tracer reads .grad of what is no leaf.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
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


class Transformer(nn.Module):
    """A block of two layers."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Linear(24, 96), nn.GELU(approximate="tanh"), nn.Linear(96, 24, bias=False)
        self.blocks = nn.ModuleList([nn.Sequential(*layers)])

    def forward(self, x):
        return self.blocks[0](x)


@pytest.mark.skipif(not shutil.which("g++"), reason="no compiler is here")
def test_compiled_blocks_use_it_forward_and_backward(monkeypatch, tmp_path) -> None:
    """Two products forward, and for a gradient of the input two more and one for each weight."""
    monkeypatch.setenv(compiling.CACHE, str(tmp_path))
    monkeypatch.setenv(compiling.WORKERS, "1")
    torch._dynamo.reset()
    eager = Transformer()
    compiled = copy.deepcopy(eager)
    compiling.compile_blocks(compiled)
    x = torch.randn(2, 64, 24, requires_grad=True)

    def learn():
        out = compiled(x)
        out.square().sum().backward()
        return out

    replayed, code = run_and_get_code(learn)
    assert [text.count(f"= torch.ops.{PRODUCT}(") for text in code] == [2, 4]
    with torch.no_grad():
        assert torch.equal(compiled(x), replayed)
    gradient = x.grad
    x.grad = None
    out = eager(x)
    out.square().sum().backward()
    assert torch.allclose(out, replayed, rtol=1e-4, atol=1e-5)
    assert torch.allclose(x.grad, gradient, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(compiled.parameters(), eager.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-3)
