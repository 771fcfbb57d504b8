"""Count the bytes of living tensors, also of tensors without storage on torch's meta device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, cast, no_type_check

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

# The lists of CUDA's autocast, as far as the policies and autoencoders here call these functions.
NARROW = {
    *(F.linear, F.conv2d, F.conv3d, F.scaled_dot_product_attention, torch.einsum),
    *(torch.matmul, Tensor.matmul, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm),
    *(torch.addmm, torch.baddbmm),
}
"""Functions that autocast computes in half precision."""
WIDE = {
    *(F.layer_norm, F.group_norm, F.rms_norm, torch.rms_norm),
    *(F.softmax, torch.softmax, Tensor.softmax, torch.exp, Tensor.exp, torch.log, Tensor.log),
    *(torch.pow, Tensor.pow, Tensor.__pow__, torch.rsqrt, Tensor.rsqrt),
    *(torch.sum, Tensor.sum, torch.cumsum, Tensor.cumsum),
}
"""Functions that autocast computes in float32."""


class Ledger(TorchDispatchMode):
    """Add up the bytes of all living storages: tensors given to it, and those made while it is on.

    `live` is the present sum, `peak` the largest so far.
    """

    # Methods that run for every operation are exempt from the tests' type checks, which would take
    # longer than the operations themselves.

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._storages: dict[int, weakref.ref] = {}
        self.live: int = 0
        self.peak: int = 0
        self.add(tensors)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were made while the ledger was off."""
        for x in tensors:
            self._count(x.untyped_storage())

    def reset_peak(self) -> None:
        """Forget peaks before now."""
        self.peak = self.live

    @no_type_check
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_iter(result):
            if isinstance(x, Tensor):
                self._count(x.untyped_storage())
        return result

    @no_type_check
    def _count(self, storage: torch.UntypedStorage) -> None:
        # Views share a storage; its address identifies it as long as it lives.
        key = storage._cdata
        size = storage.nbytes()
        if key not in self._storages:
            self._storages[key] = weakref.ref(storage, lambda _: self._discount(key, size))
            self.live += size
            self.peak = max(self.peak, self.live)

    @no_type_check
    def _discount(self, key: int, size: int) -> None:
        del self._storages[key]
        self.live -= size


class ImitateGpu(TorchFunctionMode):
    """Make calls hold the memory that they hold on a GPU, on whatever device the tensors are.

    Attention keeps no matrix of scores unless `fused_attention` is false. In half precision,
    functions compute in the dtypes of GPU autocast. A weight's copy in half precision is kept until
    the mode ends, as autocast's cache does.
    """

    def __init__(self, dtype: torch.dtype, fused_attention: bool = True) -> None:
        super().__init__()
        self.dtype: torch.dtype = dtype
        self.fused_attention: bool = fused_attention
        self._copies = dict[int, Tensor]()

    @no_type_check
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = (args, kwargs or {})
        if self.dtype != torch.float32 and func in NARROW:
            inputs = tree_map(self._narrow, inputs)
        elif self.dtype != torch.float32 and func in WIDE:
            inputs = tree_map(_widen, inputs)
        args, kwargs = inputs
        is_attention = func is F.scaled_dot_product_attention
        call = _flash_attention if is_attention and self.fused_attention else func
        return call(*args, **kwargs)

    @no_type_check
    def _narrow(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dtype in (self.dtype, torch.bool):
            return x
        if x.is_leaf and x.requires_grad:
            return self._copies.setdefault(id(x), x.to(self.dtype))
        return x.to(self.dtype)


@no_type_check
def _widen(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) else x


def _flash_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: object
) -> Tensor:
    """Compute attention that keeps its inputs, its output and one number per query for backward."""
    return cast(
        Tensor,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=attn_mask
        )[0],
    )


def measure_peak(module: nn.Module, work: Callable[[], object], *tensors: Tensor) -> int:
    """Return the most bytes that some work holds, beside a network and tensors that are there."""
    with Ledger([*module.parameters(), *module.buffers(), *tensors]) as ledger:
        before = ledger.live
        work()
    return int(ledger.peak - before)


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(x.nbytes for x in tensors)


def count_module_bytes(module: nn.Module) -> int:
    """Return the bytes of a network's weights and buffers."""
    return count_bytes([*module.parameters(), *module.buffers()])
