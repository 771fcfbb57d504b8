"""Samples are dealt to processes so that every update has equally many of them on each."""

import pytest
import torch

from grpo_guard.data import deal, shuffled_places
from grpo_guard.types import Batch, Prompt

TOTAL = 48
WHOLE = Batch(
    prompts=(Prompt(text="a"), Prompt(text="b")),
    group=torch.arange(TOTAL) // 24,
    sample=torch.arange(TOTAL),
    total=TOTAL,
)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("updates", [1, 2, 3])
def test_every_process_has_as_many_samples_of_each_update(updates, processes):
    address = (0, 3)
    parts = [deal(WHOLE, address, updates, rank, processes) for rank in range(processes)]
    assert sorted(torch.cat([part.sample for part in parts]).tolist()) == list(range(TOTAL))
    update = shuffled_places(TOTAL, *address) % updates
    for part in parts:
        counts = torch.bincount(update[part.sample], minlength=updates)
        assert counts.tolist() == [TOTAL // updates // processes] * updates
        assert torch.equal(part.group, part.sample // 24)


def test_samples_are_dealt_anew_in_every_iteration():
    first, second = (deal(WHOLE, (0, i), 2, 0, 2).sample.tolist() for i in range(2))
    assert first != second
