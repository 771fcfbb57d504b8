"""The transformer within its wrappers, and its blocks: the unit of sharding and of compiling."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def core(module: nn.Module) -> nn.Module:
    """Return the innermost module that holds all parameters: the transformer within its wrappers.

    FSDP gathers parameters when the module that it shards is called, and several wrappers may call
    one transformer: the policy, and the same policy without guidance.
    """
    inner = [child for child in module.children() if any(True for _ in child.parameters())]
    own = any(True for _ in module.parameters(recurse=False))
    return module if own or len(inner) != 1 else core(inner[0])


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the members of the outermost ModuleLists, which are a transformer's blocks."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else blocks(child)


def is_compiled(module: nn.Module) -> bool:
    """Return whether any block runs compiled code."""
    return any(block._compiled_call_impl is not None for block in blocks(module))
