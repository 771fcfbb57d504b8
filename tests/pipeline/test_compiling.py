"""Compiled blocks compute what they computed before, whatever changes around them."""

import copy
import os
import shutil

import pytest
import torch
import torch._inductor
from diffusers.models.normalization import AdaLayerNormZero
from sampling import SMALL
from torch import nn
from torch._inductor.runtime import cache_dir_utils
from torch._inductor.utils import run_and_get_code

from grpo_guard import rng
from grpo_guard.backbone.lora import Lora
from grpo_guard.backbone.sd3 import SD3
from grpo_guard.cost.random_weights import Untrained, call_policy
from grpo_guard.pipeline import compiling
from grpo_guard.pipeline.compiling import compile_blocks
from grpo_guard.pipeline.products import has_onednn
from grpo_guard.schema import ConfigError

CPU = torch.device("cpu")
LORA = Lora(rank=4, alpha=8, targets=["attn.to_q", "ff.net.2"])
TEXTS = ["a large red circle", "the word sun"]
# torch's tracer reads .grad of what is no leaf.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture
def graphs(monkeypatch):
    """Trace without a compiler, and record the number of rows of every graph that is made."""
    made = []

    def run_as_traced(graph, inputs, options):
        assert set(options) <= set(torch._inductor.list_options())
        made.append(max(len(x) for x in inputs if not isinstance(x, nn.Parameter)))
        return graph

    compile_module = nn.Module.compile
    monkeypatch.setattr(compiling, "_try_compiler", lambda device: None)
    monkeypatch.setattr(compiling, "_choose_cache", lambda: None)
    monkeypatch.setattr(
        nn.Module,
        "compile",
        lambda self, **how: compile_module(self, **how, backend=run_as_traced),
    )
    torch._dynamo.reset()
    yield made
    torch._dynamo.reset()


class Block(nn.Module):
    """A residual layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return x + torch.nn.functional.gelu(self.linear(x))


class Transformer(nn.Module):
    """Two residual blocks, and a layer outside of them."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 3)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def test_velocities_and_gradients_are_the_same_with_and_without_compiling(graphs) -> None:
    eager = Transformer()
    compiled = copy.deepcopy(eager)
    compile_blocks(compiled)
    assert list(compiled.state_dict()) == list(eager.state_dict())
    x = torch.randn(5, 3)
    with torch.no_grad():
        rolled_out = compiled(x)
    replayed = compiled(x)
    assert torch.equal(rolled_out, replayed)
    assert torch.equal(replayed, eager(x))
    for transformer in (eager, compiled):
        transformer(x).square().sum().backward()
    pairs = zip(eager.parameters(), compiled.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)


class Modulated(nn.Module):
    """The first norm of a block of SD3, which is modulated and added through a gate.

    Its backward needs `1 + scale`, so that the code of a forward with a gradient keeps it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm = AdaLayerNormZero(96)

    def forward(self, x, emb):
        normed, gate, *_ = self.norm(x, emb=emb)
        return x + gate.unsqueeze(1) * normed


class Rounding(nn.Module):
    """A transformer of one such block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Modulated()])

    def forward(self, x, emb):
        return self.blocks[0](x, emb)


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """Compile in this process, with an empty cache."""
    if not shutil.which("g++"):
        pytest.skip("no compiler is here")
    monkeypatch.setenv(compiling.CACHE, str(tmp_path))
    monkeypatch.setenv(compiling.WORKERS, "1")
    torch._dynamo.reset()


@pytest.mark.skipif(not has_onednn(), reason="this build of torch has no oneDNN")
def test_compiled_blocks_multiply_by_onednn(compiler) -> None:
    """A product forward; backward one for the gradient of the input and one for the weight's."""
    eager = Transformer()
    compiled = copy.deepcopy(eager)
    compile_blocks(compiled)
    x = torch.randn(5, 3, requires_grad=True)

    def learn():
        out = compiled(x)
        out.square().sum().backward()
        return out

    replayed, code = run_and_get_code(learn)
    assert [text.count("= torch.ops.grpo_guard.product.default(") for text in code] == [1, 2]
    with torch.no_grad():
        assert torch.equal(compiled(x), replayed)
    gradients = [x.grad, *(p.grad for p in compiled.parameters())]
    x.grad = None
    out = eager(x)
    out.square().sum().backward()
    expected = [x.grad, *(p.grad for p in eager.parameters())]
    for ours, theirs in zip([replayed, *gradients], [out, *expected], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_compiled_code_rounds_the_same_with_and_without_a_gradient(compiler) -> None:
    """Torch fuses other operations if a backward follows, and then rounds elsewhere."""
    transformer = Rounding()
    compile_blocks(transformer)
    x, emb = (torch.randn(size).bfloat16() for size in ((2, 64, 96), (2, 96)))
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            rolled_out = transformer(x, emb)
        replayed = transformer(x, emb)
    assert replayed.requires_grad
    assert torch.equal(rolled_out, replayed)


def test_a_number_of_rows_is_compiled_once_however_many_there_are(graphs) -> None:
    transformer = Transformer()
    compile_blocks(transformer)
    with torch.no_grad():
        for rows in (*range(2, 12), *range(2, 12)):
            transformer(torch.randn(rows, 3))
    assert graphs == [*range(2, 12)]  # equal blocks share their graph


def load(**settings):
    """Load the shipped SD3 without all blocks but its last: tracing one takes seconds."""
    settings = SMALL | {"model": "sd3_tiny", "t5_tokens": 0, "guidance": 1.0} | settings
    torch.manual_seed(0)
    model = SD3(**settings).load(CPU)
    del model.pipe.transformer.transformer_blocks[:-1]
    return model


def test_the_reference_of_compiled_adapters_is_the_model_without_them(graphs) -> None:
    x, t = rng.normal((2, 16, 8, 8), [(1,)], "cpu")[0], torch.tensor([0.9, 0.2])
    moved, kept = {}, {}
    for on in (False, True):
        model = load(lora=LORA, compile=on)
        for name, p in model.policy.named_parameters():
            if "lora_B" in name:
                p.data += 0.1
        condition = model.encode(TEXTS)
        with torch.no_grad():
            moved[on] = model.policy(x, t, condition)
            kept[on] = model.reference()(x, t, condition)
    assert torch.equal(moved[True], moved[False])
    assert torch.equal(kept[True], kept[False])
    assert not torch.allclose(moved[True], kept[True])
    assert graphs == [2, 2]


@pytest.mark.parametrize("on", [False, True])
def test_the_frozen_copy_is_compiled_if_the_policy_is(graphs, on: bool) -> None:
    model = load(compile=on)
    for transformer in (model.pipe.transformer, model.reference().transformer):
        (block,) = transformer.transformer_blocks
        assert (block._compiled_call_impl is not None) == on


def test_nothing_is_compiled_without_storage(graphs) -> None:
    settings = SMALL | {"model": "sd3_tiny", "t5_tokens": 0, "guidance": 1.0}
    model = Untrained(recipe=SD3(**settings, compile=True)).load(torch.device("meta"))
    call_policy(model, 2)
    assert not graphs


def test_only_the_first_run_says_that_compiling_takes_minutes(
    monkeypatch, tmp_path, caplog
) -> None:
    monkeypatch.setenv(compiling.CACHE, str(tmp_path / "compiled"))
    compiling._choose_cache()
    assert caplog.messages == [
        "the first run compiles the transformer, which takes some two minutes"
    ]
    (tmp_path / "compiled").mkdir()
    compiling._choose_cache()
    assert len(caplog.messages) == 1


def test_a_machine_without_a_compiler_is_refused_in_one_line(monkeypatch, tmp_path) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setenv(compiling.CACHE, str(tmp_path))
    # torch's own way to change its settings: pytest's would leave them without this one.
    settings = {"cpp.cxx": (str(tmp_path / "no-such-compiler"),), "compile_threads": 1}
    torch._dynamo.reset()
    needed = r"^backbone.compile=true needs a compiler .* to false$"
    with inductor.patch(settings), pytest.raises(ConfigError, match=needed):
        compile_blocks(Transformer())


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XDG_CACHE_HOME": "/cache"}, "/cache/grpo_guard/compiled"),
        ({"HOME": "/home/ann", "XDG_CACHE_HOME": ""}, "/home/ann/.cache/grpo_guard/compiled"),
        ({"XDG_CACHE_HOME": "/cache", compiling.CACHE: "/mine"}, "/mine"),
    ],
)
def test_compiled_code_is_kept_where_all_runs_find_it(monkeypatch, environment, expected) -> None:
    monkeypatch.setattr(os, "environ", environment | {compiling.WORKERS: "1"})
    compiling._choose_cache()
    assert os.environ[compiling.CACHE] == expected


def test_what_torch_wrote_into_the_environment_is_no_choice(monkeypatch) -> None:
    """It does so as soon as its tracer is imported."""
    environment = {"XDG_CACHE_HOME": "/cache", compiling.WORKERS: "1"}
    monkeypatch.setattr(os, "environ", environment)
    cache_dir_utils.cache_dir()
    assert compiling.CACHE in environment
    compiling._choose_cache()
    assert environment[compiling.CACHE] == "/cache/grpo_guard/compiled"
