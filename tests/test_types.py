"""Records are indexed, joined and changed as a whole, and their shapes are checked."""

import jaxtyping
import pytest
import torch

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


def make_rows(*steps):
    step = torch.tensor(steps)
    return Rows(sample=torch.arange(len(steps)), step=step, advantage=step.float())


def test_rows_are_indexed_and_split():
    rows = make_rows(4, 5, 6, 7, 8)
    assert len(rows) == 5
    assert rows[torch.tensor([3, 0])].step.tolist() == [7, 4]
    parts = rows.split(2)
    assert [part.step.tolist() for part in parts] == [[4, 5], [6, 7], [8]]
    assert torch.equal(concatenate(parts).advantage, rows.advantage)


def make_drift(values):
    x = torch.tensor(values)
    return Drift(along=x, square=2 * x, std=3 * x, gain=4 * x, dimensions=7)


def make_trajectory(number):
    """Make the trajectory of one sample, filled with its number."""
    zero = torch.zeros(1)
    return Trajectory(
        x=torch.full((1, 2, 3), float(number)),
        sample=torch.full((1, 3), float(number)),
        batch=Batch(
            prompts=(), group=torch.tensor([number]), sample=torch.tensor([number]), total=1
        ),
        condition=Condition(tokens=torch.zeros(1, 1, 1), pooled=torch.full((1, 1), float(number))),
        schedule=Schedule(
            t=zero, t_next=zero, x_gain=zero, v_gain=zero, std=zero, trained=torch.ones(1).bool()
        ),
        address=(0, 1),
    )


def test_records_are_concatenated_with_the_records_in_them():
    whole = concatenate([make_trajectory(number) for number in range(3)])
    assert whole.x[:, 0, 0].tolist() == whole.condition.pooled.flatten().tolist() == [0, 1, 2]
    assert whole.batch.sample.tolist() == [0, 1, 2]
    assert whole.address == (0, 1)
    assert whole.sample.shape == (3, 3)
    assert concatenate([make_drift([1.0]), make_drift([2.0])]).square.tolist() == [2, 4]
    assert concatenate([make_drift([1.0])]).dimensions == 7


def test_map_tensors_changes_every_tensor_and_nothing_else():
    doubled = map_tensors(make_drift([1.0, 2.0]), lambda x: 2 * x)
    assert doubled.along.tolist() == [2, 4]
    assert doubled.gain.tolist() == [8, 16]
    assert doubled.dimensions == 7
    batch = Batch(
        prompts=(Prompt(text="a"),), group=torch.tensor([0]), sample=torch.tensor([0]), total=1
    )
    assert map_tensors(batch, lambda x: x + 1).sample.tolist() == [1]
    assert map_tensors(batch, torch.clone).prompts == batch.prompts


def test_conditions_and_batches_are_indexed_by_row():
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
def test_tensors_of_the_wrong_shape_or_kind_are_refused(make):
    with pytest.raises(jaxtyping.TypeCheckError):
        make()
