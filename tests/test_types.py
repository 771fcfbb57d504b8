"""Components check what they are made of; records keep their shapes."""

import dataclasses
import re

import jaxtyping
import pytest
import torch

from grpo_guard.schema import ConfigError, component, require
from grpo_guard.types import (
    Batch,
    Clause,
    Condition,
    Drift,
    Objective,
    Prompt,
    Rows,
    Schedule,
    Trajectory,
    concatenate,
    map_tensors,
)


@component
class Inner:
    size: int


@component
class Part:
    level: float
    count: int
    names: list[str]
    inner: Inner | None

    def __post_init__(self):
        require(self.level > 0, f"level={self.level} is not positive; give 0.7")


GOOD = {"level": 0.7, "count": 3, "names": ["a"], "inner": Inner(size=1)}


@pytest.mark.parametrize("change", [{}, {"level": 1}, {"inner": None}, {"names": []}])
def test_components_take_what_their_fields_say(change):
    assert dataclasses.asdict(Part(**GOOD | change)) == {
        k: dataclasses.asdict(v) if isinstance(v, Inner) else v for k, v in (GOOD | change).items()
    }


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"level": "high"}, "level='high' is a str; give a value of type float"),
        ({"count": 1.5}, "count=1.5 is a float; give a value of type int"),
        ({"count": None}, "count=None is a NoneType; give a value of type int"),
        ({"names": "a"}, "names='a' is a str; give a value of type list[str]"),
        ({"names": [1]}, "names=[1] is a list; give a value of type list[str]"),
        ({"inner": 3}, "inner=3 is a int; give a value of type "),
        ({"level": -1.0}, "level=-1.0 is not positive; give 0.7"),
    ],
)
def test_components_refuse_the_rest_in_one_line(change, line):
    with pytest.raises(ConfigError, match=f"^{re.escape(line)}[^\n]*$"):
        Part(**GOOD | change)


@pytest.mark.parametrize("keys", [GOOD | {"levle": 1}, {"level": 0.7}])
def test_components_know_their_keys(keys):
    with pytest.raises(TypeError):
        Part(**keys)


def test_components_and_records_are_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Part(**GOOD).level = 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        Prompt(text="a").text = "b"
    with pytest.raises(TypeError):
        Prompt("a")


def rows(*steps):
    step = torch.tensor(steps)
    return Rows(sample=torch.arange(len(steps)), step=step, advantage=step.float())


def test_rows_are_indexed_and_split():
    many = rows(4, 5, 6, 7, 8)
    assert len(many) == 5
    assert many[torch.tensor([3, 0])].step.tolist() == [7, 4]
    parts = many.split(2)
    assert [part.step.tolist() for part in parts] == [[4, 5], [6, 7], [8]]
    assert torch.equal(concatenate(parts).advantage, many.advantage)


def drift(values):
    x = torch.tensor(values)
    return Drift(along=x, square=2 * x, std=3 * x, gain=4 * x, dimensions=7)


def test_stack_joins_records_within_records():
    batches = [
        Trajectory(
            x=torch.full((1, 2, 3), float(i)),
            sample=torch.full((1, 3), float(i)),
            batch=Batch(prompts=(), group=torch.tensor([i]), sample=torch.tensor([i]), total=1),
            condition=Condition(tokens=torch.zeros(1, 1, 1), pooled=torch.full((1, 1), float(i))),
            schedule=Schedule(**{f.name: torch.zeros(1) for f in dataclasses.fields(Schedule) if f.name != "trained"},
                              trained=torch.ones(1).bool()),
            address=(0, 1),
        )
        for i in range(3)
    ]  # fmt: skip
    joined = concatenate(batches)
    assert joined.x[:, 0, 0].tolist() == joined.condition.pooled.flatten().tolist() == [0, 1, 2]
    assert joined.batch.sample.tolist() == [0, 1, 2]
    assert joined.address == (0, 1)
    assert joined.sample.shape == (3, 3)
    assert concatenate([drift([1.0]), drift([2.0])]).square.tolist() == [2, 4]
    assert concatenate([drift([1.0])]).dimensions == 7


def test_each_changes_every_tensor_and_nothing_else():
    doubled = map_tensors(drift([1.0, 2.0]), lambda x: 2 * x)
    assert doubled.along.tolist() == [2, 4]
    assert doubled.gain.tolist() == [8, 16]
    assert doubled.dimensions == 7
    batch = Batch(
        prompts=(Prompt(text="a"),), group=torch.tensor([0]), sample=torch.tensor([0]), total=1
    )
    assert map_tensors(batch, lambda x: x + 1).sample.tolist() == [1]
    assert map_tensors(batch, torch.clone).prompts == batch.prompts


def test_conditions_and_batches_are_taken_by_row():
    condition = Condition(
        tokens=torch.arange(6.0).reshape(3, 2, 1), pooled=torch.arange(3.0)[:, None]
    )
    picked = condition[torch.tensor([2, 0, 2])]
    assert picked.pooled.flatten().tolist() == [2, 0, 2]
    assert picked.tokens.shape == (3, 2, 1)
    cat, dog = Prompt(text="cat"), Prompt(text="dog", include=(Clause(name="dog"),))
    batch = Batch(
        prompts=(cat, dog), group=torch.tensor([1, 0, 1]), sample=torch.arange(3), total=3
    )
    assert batch.prompts_by_sample() == (dog, cat, dog)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rows(
            sample=torch.zeros(2).long(), step=torch.zeros(3).long(), advantage=torch.zeros(2)
        ),
        lambda: Rows(
            sample=torch.zeros(2).long(), step=torch.zeros(2).long(), advantage=torch.zeros(2, 1)
        ),
        lambda: Objective(
            loss=torch.zeros(2),
            log_ratio=torch.zeros(2),
            high=torch.zeros(2),
            low=torch.zeros(2).bool(),
        ),
        lambda: Condition(tokens=torch.zeros(2, 1, 1), pooled=torch.zeros(3, 1)),
    ],
)
def test_shapes_and_kinds_are_types(make):
    with pytest.raises(jaxtyping.TypeCheckError):
        make()
