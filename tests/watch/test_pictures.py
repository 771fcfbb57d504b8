"""Watched pictures: against a computation pair by pair, at the limits, and in parts."""

import dataclasses
import functools
import itertools
import math

import pytest
import torch
from toy import Grey, experiment, flat_towers

from grpo_guard.metrics import dispersion, merge
from grpo_guard.reward.diversity import Diversity
from grpo_guard.session import prepare
from grpo_guard.train import iterate
from grpo_guard.types import Prompt
from grpo_guard.watch.none import NoWatch

CPU = torch.device("cpu")
DIVERSITY = Diversity(
    clip=functools.partial(flat_towers, model="flat"),
    microbatch=4,
    dtype="float32",
    name="diversity",
)


@pytest.fixture
def observe():
    return experiment().watch.load(CPU)


def draw_pictures(*groups):
    """Draw random pictures of these groups."""
    return torch.rand(len(groups), 3, 2, 2, generator=torch.manual_seed(3)), torch.tensor(groups)


def read(metrics):
    return {key: metric.value for key, metric in metrics.items()}


def test_the_mean_over_all_pairs(observe):
    images, group = draw_pictures(0, 0, 1, 1, 1, 1, 7)
    flat = images.double().flatten(1)
    cos = torch.nn.functional.cosine_similarity(flat[:, None], flat[None], dim=-1)
    means = [
        (len(rows), sum(1 - cos[i, j].item() for i, j in pairs) / len(pairs))
        for rows in ([0, 1], [2, 3, 4, 5])
        if (pairs := list(itertools.combinations(rows, 2)))
    ]
    expected = sum(count * mean for count, mean in means) / 6
    assert observe(images, group)["watch/diversity"].value == pytest.approx(expected, rel=1e-6)


def test_diversity_is_the_mean_of_the_reward(observe):
    images, group = draw_pictures(2, 0, 1, 0, 2, 1, 1, 0)
    prompts = [Prompt(text="abc"[g]) for g in group]
    scores = DIVERSITY.load(CPU)(images, prompts).total
    assert observe(images, group)["watch/diversity"].value == pytest.approx(
        scores.double().mean().item(), rel=1e-6
    )


@pytest.mark.parametrize("sizes", [[4, 4], [1, 7], [3, 2, 3]])
def test_parts_of_groups_add_up(observe, sizes):
    images, group = draw_pictures(2, 0, 1, 0, 2, 1, 1, 0)
    parts = [observe(x, g) for x, g in zip(images.split(sizes), group.split(sizes), strict=True)]
    assert read(merge(parts)) == pytest.approx(read(observe(images, group)), rel=1e-6)
    assert read(merge(reversed(parts))) == pytest.approx(read(observe(images, group)), rel=1e-6)


def test_limits():
    alike, apart = torch.ones(4, 3), torch.eye(4)
    assert dispersion(alike, torch.zeros(4, dtype=torch.long)).value == pytest.approx(0, abs=1e-12)
    assert dispersion(5 * apart, torch.zeros(4, dtype=torch.long)).value == pytest.approx(1)
    assert dispersion(
        torch.stack([apart[0], -apart[0]]), torch.zeros(2, dtype=torch.long)
    ).value == pytest.approx(2)
    assert math.isnan(dispersion(apart, torch.arange(4)).value)


def test_pictures_that_failed_are_left_out(observe):
    images, group = draw_pictures(0, 0, 0, 1, 1, 1)
    images[1, 0, 0, 0], images[5] = float("nan"), float("inf")
    whole = torch.tensor([0, 2, 3, 4])
    assert read(observe(images, group)) == pytest.approx(
        read(observe(images[whole], group[whole])), rel=1e-6
    )


def test_nothing_whole_is_no_number(observe):
    images, group = draw_pictures(0, 0)
    metrics = observe(images * float("nan"), group)
    assert all(map(math.isnan, read(metrics).values()))


def test_an_iteration_measures_its_pictures():
    @dataclasses.dataclass(frozen=True)
    class Seen(Grey):
        def load(self, device):
            def score(images, prompts):
                kept.append((images, prompts))
                return super(Seen, self).load(device)(images, prompts)

            return score

    kept = []
    session = prepare(experiment(reward=Seen()))
    metrics = read(iterate(session, 0)[1])
    images, prompts = torch.cat([x for x, _ in kept]), [p for _, parts in kept for p in parts]
    assert metrics["watch/diversity"] == pytest.approx(
        DIVERSITY.load(CPU)(images, prompts).total.mean().item(), rel=1e-5
    )
    assert metrics["watch/saturation"] == pytest.approx(
        (images.amax(1) - images.amin(1)).mean().item(), rel=1e-5
    )
    assert len(images) == 32


def test_nothing_is_watched():
    _, metrics = iterate(prepare(experiment(watch=NoWatch())), 0)
    assert not [key for key in metrics if key.startswith("watch/")]
