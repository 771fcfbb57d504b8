"""Matrix products of compiled code on a CPU, by oneDNN.

In float32, torch multiplies matrices by the library of linear algebra that it was built with, which
is Intel's MKL on x86. Its builds hold oneDNN too. On a processor of AMD with AVX-512, oneDNN was
twice as fast (docs/benchmarks.md).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node

_library = torch.library.Library("grpo_guard", "DEF")
_library.define("product(Tensor a, Tensor b) -> Tensor", tags=(torch.Tag.needs_exact_strides,))


@torch.library.impl(_library, "product", "CPU")
def _multiply(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"]) -> Float[Tensor, "n m"]:
    """Return a @ b."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    return product


@torch.library.impl(_library, "product", "Meta")
def _describe(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"]) -> Float[Tensor, "n m"]:
    """Return an empty product."""
    return a.new_empty(len(a), b.shape[1])


def has_onednn() -> bool:
    """Return whether this machine and this build of torch have what `UseOneDNN` needs."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class UseOneDNN(CustomGraphPass):
    """Replaces the products of float32 matrices on the CPU, in a graph that torch compiles.

    Forward and backward have graphs of their own, and both are given to the pass.
    """

    def __call__(self, graph: Graph) -> None:
        """Replace every product in the graph."""
        aten = torch.ops.aten
        for node in graph.find_nodes(op="call_function", target=aten.mm.default):
            if _is_float32(node):
                node.target = torch.ops.grpo_guard.product.default
        for node in graph.find_nodes(op="call_function", target=aten.addmm.default):
            if _is_float32(node) and not node.kwargs:
                _split(graph, node)

    def uuid(self) -> bytes:
        """Return what changes with this module: torch then compiles anew."""
        return get_hash_for_files((__file__,))


def _is_float32(node: Node) -> bool:
    value: Tensor = node.meta["val"]
    return value.dtype == torch.float32 and value.device.type == "cpu"


def _split(graph: Graph, node: Node) -> None:
    """Replace bias + a @ b by a product and a sum, which torch fuses with what follows."""
    bias, a, b = node.args
    with graph.inserting_before(node):
        product = graph.call_function(torch.ops.grpo_guard.product.default, (a, b))
        total = graph.call_function(torch.ops.aten.add.Tensor, (product, bias))
    product.meta["val"] = total.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(total)
    graph.erase_node(node)
