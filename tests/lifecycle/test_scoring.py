"""Both scorers score whole groups with the same rewards, in a thread or not, and lose no error."""

import dataclasses
import threading

import pytest
import torch
from toy import MACHINE, Grey, experiment

from grpo_guard.lifecycle.scoring import (
    BatchScorer,
    StreamingScorer,
    WholeGroupScorer,
    cancel_on_error,
    gather_scores,
)
from grpo_guard.metrics import mean
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.reward import rewards_from_parts
from grpo_guard.session import prepare
from grpo_guard.train import iterate
from grpo_guard.types import Batch, Prompt

CPU = torch.device("cpu")


class OneRank(Ranks):
    """The only process: it keeps what it sends to itself, without a process group."""

    def all_to_all(self, parts, where):
        (part,) = parts
        return part


def make_batch(group):
    group = torch.tensor(group)
    prompts = tuple(Prompt(text=letter) for letter in "abc")
    return Batch(prompts=prompts, group=group, sample=torch.arange(len(group)), total=len(group))


def decode(latents):
    """Return an image of one pixel whose brightness is the latent."""
    return latents.expand(-1, 3, 1, 1)


def observe(images, group):
    """Measure the brightness."""
    return {"watch/brightness": mean(images)}


def stream(score, batch, *, asynchronous=False):
    """Make a StreamingScorer."""
    return StreamingScorer(decode, score, observe, batch, asynchronous=asynchronous)


def stream_in_a_thread(score, batch):
    """Make a StreamingScorer that scores in a thread."""
    return stream(score, batch, asynchronous=True)


def exchange(score, batch):
    """Make a WholeGroupScorer."""
    return WholeGroupScorer(decode, score, observe, batch, OneRank(device=CPU))


def take_all(scorer, count, sizes):
    """Hand over images whose brightness is their number, so many at a time."""
    for part in torch.arange(float(count))[:, None, None, None].split(sizes):
        scorer.take(part)


def score_images(make, score, group, sizes):
    """Return the rewards of images whose brightness is their number, and what was watched."""
    scorer = make(score, make_batch(group))
    take_all(scorer, len(group), sizes)
    scored, watched = scorer.finish()
    return gather_scores(scored, Ranks(device=CPU)).rewards, watched


MAKERS = [stream, stream_in_a_thread, exchange]


@pytest.mark.parametrize("make", MAKERS)
def test_every_scorer_is_a_batch_scorer(make):
    scorer = make(lambda images, prompts: None, make_batch([0]))
    assert isinstance(scorer, BatchScorer)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("group", [[0, 0, 0, 1, 1, 2], [2, 0, 1, 0, 2, 1]])
def test_groups_are_scored_whole_and_returned_in_order(make, group):
    calls = []

    def score(images, prompts):
        assert not torch.is_grad_enabled()
        calls.append("".join(prompt.text for prompt in prompts))
        size = torch.full((len(images),), float(len(images)))
        return rewards_from_parts(number=images[:, 0].flatten(), size=size)

    rewards, watched = score_images(make, score, group, [2, 3, 1])
    assert rewards.total.tolist() == [0, 1, 2, 3, 4, 5]
    assert rewards.parts["size"].tolist() == [group.count(g) for g in group]
    assert sorted(calls) == ["abc"[g] * group.count(g) for g in sorted(set(group))]
    assert watched["watch/brightness"].value == 2.5
    assert watched["watch/brightness"].count == 6 * 3


@pytest.mark.parametrize("make", MAKERS)
def test_notes_are_not_kept(make):
    def score(images, prompts):
        rewards = rewards_from_parts(number=images[:, 0].flatten())
        return dataclasses.replace(rewards, notes=(("a note",),) * len(images))

    rewards, _ = score_images(make, score, [2, 0, 1, 0, 2, 1], [2, 3, 1])
    assert rewards.notes == ()


def test_asynchronous_scoring_does_not_hold_up_the_rollout():
    """The first group is scored only after the last samples have been handed over."""
    ended = threading.Event()

    def score(images, prompts):
        assert ended.wait(timeout=20)
        return rewards_from_parts(number=images[:, 0].flatten())

    scorer = stream_in_a_thread(score, make_batch([0, 0, 1, 1]))
    take_all(scorer, 4, 2)
    ended.set()
    scored, _ = scorer.finish()
    assert scored.rewards.total.tolist() == [0, 1, 2, 3]


def test_after_an_error_of_the_rollout_nothing_more_is_scored():
    """The group that is being scored is waited for, and the two behind it are dropped."""
    began, ended = threading.Event(), threading.Event()
    calls = []

    def score(images, prompts):
        calls.append(len(images))
        began.set()
        assert ended.wait(timeout=20)
        return rewards_from_parts(number=images[:, 0].flatten())

    def draw_until_interrupted(scorer):
        take_all(scorer, 6, 2)
        assert began.wait(timeout=20)
        threading.Timer(1, ended.set).start()
        raise KeyboardInterrupt

    scorer = stream_in_a_thread(score, make_batch([0, 0, 1, 1, 2, 2]))
    with pytest.raises(KeyboardInterrupt), cancel_on_error(scorer):
        draw_until_interrupted(scorer)
    assert ended.is_set()
    assert calls == [2]


@pytest.mark.parametrize("make", MAKERS)
def test_an_error_is_not_lost(make):
    def score(images, prompts):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        score_images(make, score, [0, 0, 1, 1], 2)


def test_a_run_is_the_same_with_asynchronous_scoring():
    exp = experiment(microbatch=16, reward=Grey())
    values = []
    for asynchronous in (False, True):
        session = prepare(dataclasses.replace(exp, asynchronous=asynchronous))
        _, metrics = iterate(session, 0)
        values.append({key: m.value for key, m in metrics.items() if not key.startswith(MACHINE)})
    waiting, beside = values
    assert waiting == pytest.approx(beside, rel=0, abs=0, nan_ok=True)
