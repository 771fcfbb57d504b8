"""Reads a state without running what may be in it: a state may come from somebody else.

torch's own reader unpickles the index of a state, and all that is no tensor, without a limit.
"""

from __future__ import annotations

import io
import pathlib
import pickle
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.state_dict_loader import load

_LAYOUTS = ("torch.serialization", "_get_layout")
_PATHS = (("pathlib", "PosixPath"), ("pathlib", "PurePosixPath"))
OPTIMIZER_STATES = "optimizer.state."
"""Beginning of the names of optimizer states in a state."""
_DAMAGES = (
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    ImportError,
    AssertionError,
)
"""What torch and pickle raise for files that are damaged or of something else."""


def load_tensors(state: Path, tensors: Mapping[str, Any]) -> None:
    """Read a state into tensors of the same names and shapes, in place.

    The state may lack optimizer states, such as those of parameters that never had a gradient.
    Raises ValueError if the state does not fit or is damaged, and OSError if it cannot be read.
    """
    reader = StateReader(state)
    try:
        reader.read_metadata()  # torch would log a failure, and go on
        load(dict(tensors), storage_reader=reader, planner=StatePlanner(allow_partial_load=True))
    except CheckpointException as error:
        failure, _ = next(iter(error.failures.values()))
        raise ValueError(str(failure)) from error
    except _DAMAGES as error:
        raise ValueError(str(error) or type(error).__name__) from error


class StateReader(FileSystemReader):
    """Reads the files of a state; its index may hold nothing but descriptions of tensors."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the index; raises UnpicklingError if something else is in it."""
        with open(self._get_metadata_path(kwargs.get("rank")), "rb") as file:
            index: Metadata = _IndexUnpickler(file).load()
        if not isinstance(index, Metadata):
            raise pickle.UnpicklingError(f"its index is a {type(index).__name__}")
        index.storage_meta = index.storage_meta or StorageMeta()
        index.storage_meta.load_id = self.load_id
        return index


class StatePlanner(DefaultLoadPlanner):
    """Places what is read; what is no tensor may be numbers and texts, and nothing that runs.

    torch passes over what the state lacks. Of weights and averages, nothing may be lacking.
    """

    def create_local_plan(self) -> LoadPlan:
        """Plan what is read; raises ValueError unless the state has the weights of this run."""
        assert self.metadata is not None
        _check_names(self.state_dict.keys(), self.metadata.state_dict_metadata.keys())
        return super().create_local_plan()

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Place a value that is no tensor; raises ValueError if it is not harmless."""
        try:
            torch.load(value, weights_only=True)
        except pickle.UnpicklingError as error:
            name = read_item.dest_index.fqn
            raise ValueError(f"{name} holds more than numbers and texts") from error
        value.seek(0)
        super().load_bytes(read_item, value)


def _check_names(here: Set[str], there: Set[str]) -> None:
    """Raise ValueError unless a state has the trained weights of this run and no others.

    It must have the average of this run too, if there is one. `here` and `there` are the names of
    everything in this run and in the state. Buffers, which some strategies leave out, have no
    optimizer states, and do not count.
    """
    needed = {f"policy.{name}" for name in _list_trained(here)}
    needed |= {name for name in here if name.startswith("average.")}
    lacking = sorted(needed - there)
    if lacking:
        raise ValueError(f"it lacks {lacking[0]}")
    foreign = sorted(_list_trained(there) - _list_trained(here))
    if foreign:
        raise ValueError(f"it has {foreign[0]}, which is not trained here")


def _list_trained(names: Set[str]) -> set[str]:
    """Return the names of the weights that have an optimizer state, such as exp_avg."""
    states = (name for name in names if name.startswith(OPTIMIZER_STATES))
    return {name.removeprefix(OPTIMIZER_STATES).rpartition(".")[0] for name in states}


class _IndexUnpickler(pickle.Unpickler):
    """Makes only what torch writes into an index."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class by its name; raises UnpicklingError for any that an index lacks."""
        own = {metadata.__name__: metadata, filesystem.__name__: filesystem}.get(module)
        value = getattr(own or torch, name, None)
        if own is not None and isinstance(value, type) and value.__module__ == module:
            return value
        if module == "torch" and (value is torch.Size or isinstance(value, torch.dtype)):
            return value
        if (module, name) == _LAYOUTS:
            return torch.serialization._get_layout
        if (module, name) in _PATHS:
            return getattr(pathlib, name)
        raise pickle.UnpicklingError(f"its index has {module}.{name}, which no state needs")
