"""The peak of memory is a run's own, and memory that does not suffice is explained in one line."""

import pytest
import torch

from grpo_guard.diagnostics import memory
from grpo_guard.diagnostics.memory import REMEDIES, explain_shortage, peak_bytes, reset_peak
from grpo_guard.schema import ConfigError, RunError

CPU = torch.device("cpu")
MIB = 2**20
ON_GPU = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of"
    " which 1.20 GiB is free."
)
ON_HOST = (
    "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried"
)


class CountedDevice:
    """Stands for torch.cuda, with other numbers for each device."""

    def __init__(self):
        self.resets = []

    def reset_peak_memory_stats(self, device):
        self.resets.append(device.index)

    def max_memory_allocated(self, device):
        return 100 + device.index

    def memory_allocated(self, device):
        return 3 * 2**30


@pytest.fixture
def counted(monkeypatch):
    device = CountedDevice()
    monkeypatch.setattr(memory, "_memory_of", lambda _: device)
    return device


@pytest.mark.skipif(not memory._STATUS.exists(), reason="only Linux forgets a peak")
def test_a_later_run_does_not_report_the_peak_of_an_earlier_one():
    reset_peak(CPU)
    before = peak_bytes(CPU)
    torch.ones(64 * MIB)
    assert peak_bytes(CPU) > before + 200 * MIB
    reset_peak(CPU)
    assert peak_bytes(CPU) < before + 100 * MIB


def test_the_peak_is_that_of_the_runs_own_device(counted):
    reset_peak(torch.device("cuda", 1))
    assert counted.resets == [1]
    assert peak_bytes(torch.device("cuda", 1)) == 101


@pytest.mark.parametrize("phase", REMEDIES)
def test_a_shortage_names_phase_bytes_and_remedy(phase, counted):
    with (
        pytest.raises(RunError, match=rf"cuda:1 .* {phase}: 3.00 GiB were held and 2.00 GiB more"),
        explain_shortage(torch.device("cuda", 1), phase),
    ):
        raise torch.OutOfMemoryError(ON_GPU)


def test_a_shortage_of_the_host_is_one_too():
    with pytest.raises(RunError, match=r"cpu is out of memory .*lower microbatch"):  # noqa: SIM117
        with explain_shortage(CPU, "update"):
            raise RuntimeError(f"{ON_HOST} to allocate 1073741824 bytes. Error code 12")


@pytest.mark.parametrize("error", [ConfigError("no"), RuntimeError("no"), RunError("no")])
def test_other_errors_pass(error):
    with pytest.raises(type(error), match=r"^no$"), explain_shortage(CPU, "update"):
        raise error
