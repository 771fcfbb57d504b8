"""Updates that are skipped in a row are counted; one that is not skipped ends the row."""

import pytest

from grpo_guard.diagnostics.not_finite import count_skipped
from grpo_guard.metrics import scalar


@pytest.mark.parametrize(
    ("before", "skipped", "count"),
    [
        (0, [], 0),
        (2, [], 2),
        (0, [1, 1], 2),
        (3, [1], 4),
        (3, [0], 0),
        (3, [1, 0, 1], 1),
        (3, [0, 1, 1], 2),
    ],
)
def test_only_skips_in_a_row_count(before, skipped, count):
    updates = [{"update/skipped": scalar(float(flag))} for flag in skipped]
    assert count_skipped(before, updates) == count
