"""A component of one noun cannot stand where one of another noun is wanted."""

import functools
from collections.abc import Callable

import pytest
import toy

from grpo_guard.backbone import Backbone
from grpo_guard.cost.random_weights import Untrained
from grpo_guard.instances import is_instance
from grpo_guard.kl import Kl
from grpo_guard.kl.none import NoKl
from grpo_guard.reward import Reward
from grpo_guard.types import Drift


def by_drift(drift: Drift) -> float:
    return 0.0


def by_number(number: float) -> float:
    return number


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        (NoKl(), Kl, True),
        # It has the members of a backbone.
        (NoKl(), Backbone, False),
        # A user's class is judged by its members alone.
        (toy.Backbone(), Backbone, True),
        (toy.Backbone(), Kl, False),
        (5, Kl, False),
        (functools.partial(NoKl), Kl, False),
        (by_drift, Callable[[Drift], float], True),
        (by_number, Callable[[Drift], float], False),
        (functools.partial(by_number, 1.0), Callable[[Drift], float], False),
        (5, Callable[[Drift], float], False),
    ],
)
def test_a_value_stands_where_its_own_noun_is_wanted(value, hint, fits):
    assert is_instance(value, hint) is fits


def test_a_class_of_the_package_that_belongs_to_no_noun_can_stand_in():
    """The benchmarks give a run random weights by cost.random_weights.Untrained."""
    assert is_instance(object.__new__(Untrained), Backbone)
    assert not is_instance(object.__new__(Untrained), Reward)
