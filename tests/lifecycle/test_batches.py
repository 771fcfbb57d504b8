"""What divides is accepted and adds up; what does not is refused with the nearest that would."""

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_guard.lifecycle.batches import BatchSizes
from grpo_guard.schema import ConfigError

PAPER = {"prompts": 48, "repeats": 24, "rows": 9, "updates": 2, "processes": 8, "microbatch": 8}
SMALL = st.integers(1, 12)


@given(st.fixed_dictionaries(dict.fromkeys(PAPER, SMALL)))
def test_what_is_accepted_adds_up_and_the_nearest_is_accepted(sizes):
    try:
        batch_sizes = BatchSizes(**sizes)
    except ConfigError as error:
        key, nearest = re.search(r"into (\w+)=\d+; nearest that does: (\d+)", str(error)).groups()
        with suppress(ConfigError):
            BatchSizes(**sizes | {key: int(nearest)})
            return
        with pytest.raises(ConfigError, match=f"into (?!{key})"):
            BatchSizes(**sizes | {key: int(nearest)})
        return
    assert (
        batch_sizes.samples_here * batch_sizes.processes
        == batch_sizes.samples
        == sizes["prompts"] * sizes["repeats"]
    )
    assert (
        batch_sizes.accumulation
        * batch_sizes.microbatch
        * batch_sizes.updates
        * batch_sizes.processes
        == batch_sizes.samples * batch_sizes.rows
    )
    assert batch_sizes.samples_here % batch_sizes.microbatch == 0


def test_what_was_chosen_is_told():
    assert BatchSizes(**PAPER).describe() == (
        "an iteration: 48 prompts x 24 = 1152 samples, 144 on each of 8 processes, drawn in 18 microbatches of 8;"
        " 2 updates of 648 rows (9 steps a sample), accumulated over 81"
    )


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
def test_what_does_not_divide_is_refused_with_the_nearest(changes, line):
    with pytest.raises(ConfigError, match=line):
        BatchSizes(**PAPER | changes)
