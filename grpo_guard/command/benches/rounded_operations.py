"""Rounds single kinds of operations of a float32 network, to see which of them matter."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

MATRICES = frozenset({"linear", "conv2d", "matmul", "bmm"})
ATTENTION = frozenset({"scaled_dot_product_attention"})
NORMS = frozenset({"layer_norm", "rms_norm", "group_norm"})
ACTIVATIONS = frozenset({"gelu", "silu"})
SUMS = frozenset({"add", "__add__", "__radd__", "sub", "__sub__", "mul", "__mul__", "__rmul__"})
SITES: Mapping[str, tuple[frozenset[str], bool]] = {
    "inputs of matrices": (MATRICES | ATTENTION, True),
    "results of matrices": (MATRICES | ATTENTION, False),
    "norms": (NORMS, False),
    "activations": (ACTIVATIONS, False),
    "sums and products": (SUMS, False),
}
"""Names of functions, and whether their inputs are rounded or their results.

Sums and products are those of the residual stream and of the modulation.
"""
MANTISSA = 23
"""Explicit bits of float32."""


class RoundAt(TorchFunctionMode):
    """Round the numbers of some `SITES` to so many explicit bits of the mantissa, while it is on.

    The range of the exponent stays that of float32.
    """

    def __init__(self, sites: Collection[str], bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.at_input = frozenset().union(*(SITES[s][0] for s in sites if SITES[s][1]))
        self.at_result = frozenset().union(*(SITES[s][0] for s in sites if not SITES[s][1]))

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in self.at_input:
            args = tuple(self._round(value) for value in args)
        result = function(*args, **(kwargs or {}))
        return self._round(result) if name in self.at_result else result

    def _round(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.dtype == torch.float32:
            return round_mantissa(value, self.bits)
        return value


def round_mantissa(x: Tensor, bits: int) -> Tensor:
    """Round float32 numbers to the nearest ones with so many explicit bits; ties go away from 0."""
    dropped = MANTISSA - bits
    whole = x.contiguous().view(torch.int32) + (1 << (dropped - 1))
    return (whole & -(1 << dropped)).view(torch.float32)
