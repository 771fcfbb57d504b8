"""Every component states its cost, and one that does not is refused."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from grpo_guard.console import cli
from grpo_guard.ema import Ema
from grpo_guard.eval import Eval, EvaluationCost
from grpo_guard.kl import Kl
from grpo_guard.old_policy import OldPolicy
from grpo_guard.parallel.costs import PolicyCalls, PolicySizes, Shares
from grpo_guard.reward import Reward
from grpo_guard.schema import ConfigError, component
from grpo_guard.strategy import Strategy
from grpo_guard.watch import Watch

SIZES = PolicySizes(blocks=600, rest=40, stored=1280, trained=1000)
CALLS = PolicyCalls(forwards=10, microbatches=6, updates=2)
STATEMENTS = {
    "kl": (Kl, ["reference_forwards"]),
    "old_policy": (OldPolicy, ["extra_forwards", "stores_means", "weight_copies"]),
    "ema": (Ema, ["device_copies"]),
    "strategy": (Strategy, ["shares", "count_traffic"]),
    "eval": (Eval, ["cost"]),
    "reward": (Reward, ["weight_bytes"]),
    "watch": (Watch, ["weight_bytes"]),
}
"""The protocol of each group of conf/, and its members that state a cost."""
CHOICES = [
    (group, path.stem)
    for group in STATEMENTS
    for path in sorted(Path(cli.CONF, group).glob("*.yaml"))
]
CLIP = 4 * 428_000_000
"""Bytes of OpenAI's ViT-L/14 in float32."""


def read_statement(part, member):
    value = getattr(part, member)
    arguments = {"count_traffic": (SIZES, CALLS), "extra_forwards": (CALLS.updates,)}
    return value(*arguments[member]) if member in arguments else value


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_states_its_cost(group, name, choice):
    part = choice(group, name)
    protocol, members = STATEMENTS[group]
    assert isinstance(part, protocol)
    for member in members:
        cost = read_statement(part, member)
        assert isinstance(cost, bool | int | float | dict | Shares | EvaluationCost)


@pytest.mark.parametrize(
    ("group", "member"),
    [(group, member) for group, (_, members) in STATEMENTS.items() for member in members],
)
def test_a_component_without_a_statement_is_refused(group, member, choice):
    """A component fits its protocol, and so an experiment, only with all statements."""
    protocol, _ = STATEMENTS[group]
    part = choice(group, next(name for other, name in CHOICES if other == group))
    names = [name for name in dir(part) if name == "__call__" or not name.startswith("__")]
    silent = SimpleNamespace(**{name: getattr(part, name) for name in names})
    assert isinstance(silent, protocol)
    delattr(silent, member)
    assert not isinstance(silent, protocol)

    @component
    class Holder:
        part: protocol

    with pytest.raises(ConfigError, match=r"part=.* is a SimpleNamespace; give"):
        Holder(part=silent)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("clipscore", CLIP),
        ("aesthetic", CLIP + 4 * 927_969),
        ("geneval_coco", CLIP + 4 * 69_000_000),
        ("diversity_photos", CLIP),
        ("ocr", 0),
        ("pickscore", 0),
    ],
)
def test_scorers_count_with_all_their_parts(name, expected, choice):
    assert choice("reward", name).weight_bytes == expected


def test_scorers_that_contain_others_add_them_up(choice):
    judge = choice("reward", "geneval_coco")
    mixture = dataclasses.replace(
        choice("reward", "mixture"), rewards={"a": judge, "b": judge}, weights={"a": 1, "b": 1}
    )
    assert mixture.weight_bytes == 2 * judge.weight_bytes
    half = dataclasses.replace(judge, colors=dataclasses.replace(judge.colors, dtype="bfloat16"))
    assert half.weight_bytes == 4 * 69_000_000 + CLIP // 2
    assert dataclasses.replace(choice("reward", "remote"), served=judge).weight_bytes == 0


def test_golds_stay_or_visit(choice):
    kept = choice("eval", "photos")
    visiting = dataclasses.replace(kept, keep_gold=False)
    sizes = [gold.weight_bytes for gold in kept.gold.values()]
    assert (kept.cost.resident_bytes, kept.cost.visiting_bytes) == (sum(sizes), 0)
    assert (visiting.cost.resident_bytes, visiting.cost.visiting_bytes) == (0, max(sizes))
