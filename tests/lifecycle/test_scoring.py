"""Scoring behind the rollout: the same rewards, whole groups, and no error lost."""

import dataclasses
import threading

import pytest
import torch
from toy import Grey, experiment

from grpo_guard.lifecycle.scoring import StreamingScorer
from grpo_guard.reward import rewards_from_parts
from grpo_guard.session import prepare
from grpo_guard.train import iterate
from grpo_guard.types import Batch, Prompt


def batch(group):
    group = torch.tensor(group)
    prompts = tuple(Prompt(text=letter) for letter in "abc")
    return Batch(prompts=prompts, group=group, sample=torch.arange(len(group)), total=len(group))


def observe_nothing(images, group):
    """Watch nothing."""
    return {}


def scored(score, group, sizes, *, asynchronous):
    """Rewards of images whose brightness is their number, handed over in parts."""
    scoring = StreamingScorer(
        lambda latents: latents, score, observe_nothing, batch(group), asynchronous=asynchronous
    )
    for part in torch.arange(float(len(group)))[:, None, None, None].split(sizes):
        scoring.take(part)
    return scoring.finish()[0].rewards


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("group", [[0, 0, 0, 1, 1, 2], [2, 0, 1, 0, 2, 1]])
def test_groups_are_scored_whole_and_given_back_in_order(group, asynchronous):
    seen = []

    def score(images, prompts):
        seen.append(([int(i) for i in images.flatten()], {p.text for p in prompts}))
        return rewards_from_parts(
            number=images.flatten(), size=torch.full((len(images),), float(len(images)))
        )

    rewards = scored(score, group, [2, 3, 1], asynchronous=asynchronous)
    assert rewards.total.tolist() == [0, 1, 2, 3, 4, 5]
    assert rewards.parts["size"].tolist() == [group.count(g) for g in group]
    assert all(
        len(texts) == 1 and len(images) == group.count("abc".index(*texts))
        for images, texts in seen
    )


@pytest.mark.parametrize("asynchronous", [False, True])
def test_notes_are_not_kept(asynchronous):
    def score(images, prompts):
        return dataclasses.replace(
            rewards_from_parts(number=images.flatten()), notes=(("seen",),) * len(images)
        )

    assert scored(score, [2, 0, 1, 0, 2, 1], [2, 3, 1], asynchronous=asynchronous).notes == ()


def test_scoring_goes_on_behind_the_rollout():
    """The first group's score waits for the last samples; only asynchronous scoring gets there."""
    ended = threading.Event()

    def score(images, prompts):
        assert not torch.is_grad_enabled()
        assert ended.wait(timeout=20) or images[0] > 0
        return rewards_from_parts(number=images.flatten())

    scoring = StreamingScorer(
        lambda latents: latents, score, observe_nothing, batch([0, 0, 1, 1]), asynchronous=True
    )
    for part in torch.arange(4.0)[:, None, None, None].split(2):
        scoring.take(part)
    ended.set()
    assert scoring.finish()[0].rewards.total.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_error_is_not_lost(asynchronous):
    def score(images, prompts):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        scored(score, [0, 0, 1, 1], 2, asynchronous=asynchronous)


def test_a_run_is_the_same():
    exp = experiment(microbatch=16, reward=Grey())
    runs = [
        iterate(prepare(dataclasses.replace(exp, asynchronous=way)), 0)[1] for way in (False, True)
    ]
    keys = [
        key
        for key in runs[0]
        if not key.startswith(("time/", "throughput/", "memory/", "ratio", "clip"))
    ]
    assert all(runs[0][key].value == runs[1][key].value for key in keys)
