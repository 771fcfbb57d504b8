"""The synthetic world's captions as a source of prompts."""

import pytest

from grpo_guard.data.world import World
from grpo_guard.schema import ConfigError


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"prompts": 0}, "prompts=0 is not positive"),
        ({"repeats": 1}, "repeats=1 leaves nothing to compare in a group; give 2 or more"),
        ({"families": ["shapes", "cars"]}, r"families=\['cars'\] are unknown; choose from"),
        ({"families": []}, r"families=\[\] is empty; choose from"),
    ],
)
def test_refusals(changes, line):
    with pytest.raises(ConfigError, match=line):
        World(**{"prompts": 2, "repeats": 2, "families": ["shapes"]} | changes)


def test_the_world_holds_prompts_out():
    split = World(prompts=2, repeats=2, families=["shapes"]).load()
    train, heldout = ({prompt.text for prompt in side} for side in (split.train, split.heldout))
    assert train
    assert heldout
    assert not train & heldout
