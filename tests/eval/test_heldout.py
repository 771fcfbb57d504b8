"""An evaluation draws its own held-out prompts; each judge scores the pictures of its prompts."""

import dataclasses
import math
import re

import pytest
import torch
from toy import SHAPE, Backbone, Grey, Model, experiment

from grpo_guard.data import Split
from grpo_guard.ema.average import Average
from grpo_guard.eval.heldout import HELD_OUT_NOISE
from grpo_guard.final_steps.euler import Euler
from grpo_guard.reward import rewards_from_parts
from grpo_guard.rollout import rollout
from grpo_guard.schema import ConfigError, component
from grpo_guard.sde import schedule
from grpo_guard.sde.ode import Ode
from grpo_guard.session import prepare
from grpo_guard.train import iterate
from grpo_guard.types import Batch, Prompt

HELDOUT = tuple(Prompt(text=letter) for letter in "ghijklmnop")
TRAIN = tuple(Prompt(text=letter) for letter in "abcdef")


@component
class Letters:
    """Six training prompts and ten held-out ones."""

    prompts: int = 4
    repeats: int = 8

    def load(self):
        return Split(train=TRAIN, heldout=HELDOUT)


class Recorder:
    """A gold that keeps what it scores, and accepts only some prompts."""

    compares = False
    weight_bytes = 0

    def __init__(self, accepted):
        self.accepted = accepted
        self.seen = {}

    def accepts(self, prompt):
        return prompt.text in self.accepted

    def load(self, device):
        def score(images, prompts):
            for image, prompt in zip(images, prompts, strict=True):
                self.seen[prompt.text] = image
            return rewards_from_parts(brightness=images.mean((1, 2, 3)))

        return score


def evaluation(**changes):
    """An experiment that evaluates six of the ten held-out prompts."""
    return dataclasses.replace(experiment().eval, **{"prompts": 6, "pictures": 6} | changes)


def drawn_by_hand(policy, model, texts, seed, steps=3):
    """The pictures of some prompts, from the noise of an evaluation's address, one by one."""
    pictures = {}
    for number, text in enumerate(texts):
        index = torch.tensor([number])
        prompts = tuple(Prompt(text=t) for t in texts)
        batch = Batch(prompts=prompts, group=index, sample=index, total=len(texts))
        trajectory = rollout(
            policy,
            schedule(Ode(), model.times(steps)),
            batch,
            model.encode(texts),
            SHAPE,
            address=(seed, HELD_OUT_NOISE),
            microbatch=1,
            final_steps=Euler(),
        )
        pictures[text] = model.decode(trajectory.sample)[0]
    return pictures


def test_a_gold_scores_the_pictures_of_the_prompts_that_it_accepts():
    texts = captions()
    gold = Recorder({texts[1], texts[3], texts[4]})  # not the first rows, so that order matters
    session = prepare(experiment(data=Letters(), eval=evaluation(gold={"some": gold})))
    result = session.evaluate(0)
    by_hand = drawn_by_hand(session.policy, session.model, result.pictures.captions, seed=9)
    accepted = [text for text in result.pictures.captions if text in gold.accepted]
    assert sorted(gold.seen) == sorted(accepted)
    for text in accepted:
        assert torch.allclose(gold.seen[text], by_hand[text], atol=1e-6)
    brightness = torch.stack([by_hand[text].mean() for text in accepted])
    assert result.metrics["eval/gold/brightness"].value == pytest.approx(
        brightness.mean().item(), rel=1e-5
    )
    for caption, scores in zip(result.pictures.captions, result.pictures.scores, strict=True):
        assert ("eval/gold/brightness" in scores.scores) == (caption in accepted)


def test_the_scores_of_all_prompts_are_kept_in_their_order():
    texts = captions()
    gold = Recorder({texts[1], texts[3]})
    changes = {"pictures": 2, "train_prompts": 4, "gold": {"some": gold}}
    result = prepare(experiment(data=Letters(), eval=evaluation(**changes))).evaluate(0)
    scores = result.pictures.by_prompt
    for key in ("eval/proxy/grey", "eval/train/proxy/grey"):
        count = 4 if "train" in key else 6
        assert len(scores[key]) == count
        assert sum(scores[key]) / count == pytest.approx(result.metrics[key].value, rel=1e-5)
    scored = {i: v for i, v in enumerate(scores["eval/gold/brightness"]) if not math.isnan(v)}
    assert scored == {i: pytest.approx(gold.seen[texts[i]].mean().item(), rel=1e-5) for i in (1, 3)}


def captions(seed=9, run_seed=0):
    """The prompts of an evaluation, by its own seed and by that of the run."""
    exp = experiment(data=Letters(), eval=evaluation(seed=seed), seed=run_seed)
    return prepare(exp).evaluate(0).pictures.captions


def test_prompts_are_held_out_and_depend_on_the_seed_of_the_evaluation_alone():
    assert set(captions()) <= {prompt.text for prompt in HELDOUT}
    assert captions(run_seed=5) == captions()
    assert captions(seed=10) != captions()


@pytest.mark.parametrize("run_seed", [0, 5])
def test_the_noise_depends_on_the_seed_of_the_evaluation_alone(run_seed):
    session = prepare(experiment(data=Letters(), eval=evaluation(), seed=run_seed))
    result = session.evaluate(0)
    by_hand = drawn_by_hand(session.policy, session.model, result.pictures.captions, seed=9)
    other = drawn_by_hand(session.policy, session.model, result.pictures.captions, seed=10)
    for caption, image in zip(result.pictures.captions, result.pictures.images, strict=True):
        assert torch.allclose(image, by_hand[caption], atol=1e-6)
        assert not torch.allclose(image, other[caption], atol=1e-3)


class Guided(Model):
    """A model that must be evaluated with its guidance."""

    def unguided(self):
        return lambda x, t, condition: 0 * self.policy(x, t, condition)


@component
class GuidedBackbone(Backbone):
    def load(self, device):
        return Guided()


def test_an_evaluation_keeps_the_guidance():
    session = prepare(experiment(backbone=GuidedBackbone(), data=Letters(), eval=evaluation()))
    result = session.evaluate(0)
    by_hand = drawn_by_hand(session.policy, session.model, result.pictures.captions, seed=9)
    for caption, image in zip(result.pictures.captions, result.pictures.images, strict=True):
        assert torch.allclose(image, by_hand[caption], atol=1e-6)


@pytest.mark.parametrize("shift", [0.1, 0.3])
def test_eval_kl_is_the_mean_square_of_the_change_of_velocity(shift):
    session = prepare(experiment(data=Letters(), eval=evaluation()))
    with torch.no_grad():
        session.model.policy.map.bias += shift  # every velocity changes by this
    assert session.evaluate(0).metrics["eval/kl"].value == pytest.approx(shift**2, rel=1e-4)


def test_an_evaluation_uses_the_averaged_weights_of_every_update():
    """The average is computed here from the weights after each optimizer step."""
    session = prepare(
        experiment(data=Letters(), eval=evaluation(), ema=Average(decay=0.5, every=1, on_cpu=True))
    )
    weights = [p.detach().clone() for p in session.model.policy.parameters()]
    average = [w.clone() for w in weights]
    step = session.learner.step
    count = 0

    def counted_step():
        nonlocal count
        norm = step()
        count += 1
        decay = min(0.5, (1 + count) / (10 + count))
        for mean, p in zip(average, session.model.policy.parameters(), strict=True):
            mean.copy_(decay * mean + (1 - decay) * p.detach())
        return norm

    session.learner.step = counted_step
    for iteration in range(2):
        iterate(session, iteration)
    assert count == 4
    result = session.evaluate(0)
    for p, mean in zip(session.model.policy.parameters(), average, strict=True):
        assert not torch.allclose(p, mean, atol=1e-6)
        p.data = mean
    by_hand = drawn_by_hand(session.policy, session.model, result.pictures.captions, seed=9)
    for caption, image in zip(result.pictures.captions, result.pictures.images, strict=True):
        assert torch.allclose(image, by_hand[caption], atol=1e-5)


def test_the_proxy_judges_as_it_rewards():
    session = prepare(experiment(data=Letters(), eval=evaluation(), reward=Grey(target=0.4)))
    result = session.evaluate(0)
    by_hand = drawn_by_hand(session.policy, session.model, result.pictures.captions, seed=9)
    grey = torch.stack([-(image.mean() - 0.4).square() for image in by_hand.values()])
    assert result.metrics["eval/proxy/grey"].value == pytest.approx(grey.mean().item(), rel=1e-4)


def test_training_prompts_are_evaluated_beside_the_held_out_ones():
    gold = Recorder({"a", "b", "c", "g", "h"})
    exp = experiment(data=Letters(), eval=evaluation(train_prompts=6, gold={"some": gold}))
    session = prepare(exp)
    result = session.evaluate(0)
    assert {"a", "b", "c"} <= set(gold.seen)  # six training prompts are all there are
    brightness = torch.stack([gold.seen[text].mean() for text in "abc"]).mean().item()
    metrics = result.metrics
    assert metrics["eval/train/gold/brightness"].value == pytest.approx(brightness, rel=1e-5)
    assert metrics["eval/train/proxy/grey"].count == 6
    assert metrics["eval/failed/train/proxy"].value == 0
    assert set(result.pictures.captions) <= {prompt.text for prompt in HELDOUT}
    plain = prepare(experiment(data=Letters(), eval=evaluation(gold={"some": gold})))
    for key, metric in plain.evaluate(0).metrics.items():
        if not key.startswith("time/"):
            assert metrics[key].value == metric.value, key


def drawn_training_prompts(seed, run_seed):
    """The three training prompts that an evaluation draws, by its own seed and the run's."""
    gold = Recorder({prompt.text for prompt in TRAIN})
    changes = {"seed": seed, "train_prompts": 3, "gold": {"some": gold}}
    exp = experiment(data=Letters(), eval=evaluation(**changes), seed=run_seed)
    prepare(exp).evaluate(0)
    return list(gold.seen)


def test_training_prompts_depend_on_the_seed_of_the_evaluation_alone():
    by_seed = [drawn_training_prompts(seed, run_seed=0) for seed in (9, 10, 11)]
    assert len({str(texts) for texts in by_seed}) == 3
    assert drawn_training_prompts(9, run_seed=5) == by_seed[0]


def test_golds_whose_scores_share_a_name_are_refused():
    """Their scores would be averaged into one number."""
    golds = {"some": Recorder({"g", "h"}), "other": Recorder({"g"})}
    session = prepare(experiment(data=Letters(), eval=evaluation(prompts=10, gold=golds)))
    message = (
        "eval.gold.some and eval.gold.other both give brightness, which is one number in the logs;"
        " leave one of them out, or give one another name, if it has that setting"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        session.evaluate(0)
