"""Batch sizes that divide are accepted and add up; others are refused with the nearest divisor."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_guard.lifecycle.batches import BatchSizes
from grpo_guard.schema import ConfigError

PAPER = {"prompts": 48, "repeats": 24, "rows": 9, "updates": 2, "processes": 8, "microbatch": 8}
SMALL = st.integers(1, 12)


def assert_sizes_add_up(sizes):
    assert sizes.samples_here * sizes.processes == sizes.samples == sizes.prompts * sizes.repeats
    rows = sizes.accumulation * sizes.microbatch * sizes.updates * sizes.processes
    assert rows == sizes.samples * sizes.rows
    assert sizes.samples_here % sizes.microbatch == 0


def refusal_of(settings):
    """Return the message with which settings are refused, empty if they are accepted."""
    try:
        BatchSizes(**settings)
    except ConfigError as error:
        return str(error)
    return ""


@given(st.fixed_dictionaries(dict.fromkeys(PAPER, SMALL)))
def test_sizes_add_up_or_the_suggested_one_is_accepted(settings):
    """With the suggested size there is no refusal, or it is about another key."""
    message = refusal_of(settings)
    if message:
        key, nearest = re.search(r"into (\w+)=\d+; nearest that does: (\d+)", message).groups()
        assert f"into {key}=" not in refusal_of(settings | {key: int(nearest)})
    else:
        assert_sizes_add_up(BatchSizes(**settings))


def test_batches_are_described_in_one_line():
    assert BatchSizes(**PAPER).describe() == (
        "an iteration: 48 prompts x 24 = 1152 samples, 144 on each of 8 processes, drawn in"
        " 18 microbatches of 8; 2 updates of 648 rows (9 steps a sample), accumulated over 81"
    )


def test_one_microbatch_and_one_update_are_singular():
    sizes = {"prompts": 1, "repeats": 4, "microbatch": 4, "updates": 1, "processes": 1}
    line = BatchSizes(**(PAPER | sizes)).describe()
    assert "drawn in 1 microbatch of 4; 1 update of " in line


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"updates": 7}, "= 1152 samples do not divide into updates=7; nearest that does: 6"),
        (
            {"processes": 7},
            "1152 samples in 2 updates do not divide into processes=7; nearest that does: 6",
        ),
        (
            {"microbatch": 10},
            "1152 samples on 8 processes do not divide into microbatch=10; nearest that does: 9",
        ),
        (
            {"microbatch": 16, "rows": 1},
            "72 rows per update .* do not divide into microbatch=16; nearest that does: 18",
        ),
    ],
)
def test_sizes_that_do_not_divide_are_refused_with_the_nearest_that_does(changes, line):
    with pytest.raises(ConfigError, match=line):
        BatchSizes(**PAPER | changes)
