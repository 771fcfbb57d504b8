"""Preflight: what it says if the memory does not suffice."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from grpo_guard.command import noise_floors
from grpo_guard.console import cli
from grpo_guard.schema import RunError


def test_memory_that_does_not_suffice_is_one_line(monkeypatch):
    def run_short(_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    session = SimpleNamespace(ranks=SimpleNamespace(device=torch.device("cpu")))
    monkeypatch.setattr(cli, "build", lambda _: None)
    monkeypatch.setattr(cli, "hide_progress_bars", lambda: None)
    monkeypatch.setattr(noise_floors, "prepare", lambda _: session)
    monkeypatch.setattr(noise_floors, "print_floors", run_short)
    with pytest.raises(RunError, match="cpu is out of memory in the phase rollout: "):
        noise_floors.measure_and_print(OmegaConf.create({}))
