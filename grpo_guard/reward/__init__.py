"""Rewards score images. A run trains on one reward and may evaluate with any number of others.

How to add a reward; `checker.py` is a short example without weights, `aesthetic.py` one with them:

1. Write `grpo_guard/reward/<name>.py` with a component that has the members of `Reward` below.
   Its fields are its settings. Making the component must be cheap: no weights and no network.
2. Write `conf/reward/<name>.yaml` with `_target_: grpo_guard.reward.<name>.<Class>` and its fields.
3. Train on it with `reward=<name>`, or only evaluate with it: `+reward@eval.gold.<name>=<name>`.

A class may say what its scores mean, by their names: `meanings: ClassVar[Mapping[str, str]]`, a
literal dictionary. Pages show these texts; {key} in a name or text is the value of that setting.

A user's reward needs only a file in the folder where the command is started: docs/new_reward.md.
"""

from __future__ import annotations

import contextlib
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.schema import ConfigError, RunError, require
from grpo_guard.shortage import is_shortage
from grpo_guard.types import Prompt, Rewards

Scorer = Callable[[Float[Tensor, "B 3 H W"], Sequence[Prompt]], Rewards]
"""(images, prompts) -> scores.

Images are floats in [0, 1] of any height and width, in RGB, on the run's device. There are B of
them and B prompts, image i being a sample of prompt i. Scores are floats of shape (B,): higher is
better, in any unit, and NaN for an image that cannot be scored. Return them with `make_rewards`.
Gradients are not needed: put `torch.no_grad()` around a network.
"""


@runtime_checkable
class Reward(Protocol):
    """The members of a reward. Everything before `load` works without weights or a network."""

    @property
    def compares(self) -> bool:
        """Whether the score of an image depends on the other images of its prompt.

        False for most rewards; write `compares: ClassVar[bool] = False`. If it is True, all samples
        of a prompt are brought to one process and scored in one call.
        """

    def accepts(self, prompt: Prompt) -> bool:
        """Return whether the reward can score images of this prompt.

        Prompts that are not accepted are never drawn (docs/adr/0007). Return True if any text will
        do; look at `prompt.text` or `prompt.include` if the reward needs something of the prompt.
        """

    @property
    def weight_bytes(self) -> int:
        """Bytes of the network weights that `load` puts on the device."""

    def load(self, device: torch.device) -> Scorer:
        """Load the weights to the device and return the function that scores images.

        Called once per process. Raises ConfigError, which names the key, the value and the remedy,
        if the weights are missing or damaged.
        """


def load_scorer(key: str, reward: Reward, device: torch.device) -> Scorer:
    """Load a reward and return its scorer, which checks everything that the reward returns.

    `key` is the setting that holds the reward, such as "eval.gold.ocr". Whatever the reward raises
    becomes one line that names it: ConfigError while it loads, RunError while it scores. Scores
    that are not what `Scorer` promises raise RunError too. Memory that does not suffice is no fault
    of the reward: that error is raised as it is.
    """
    name = _name_reward(key, reward)
    with _blame_reward(name, reward, ConfigError):
        score = reward.load(device)
    require(
        callable(score),
        f"{name}.load returned a {type(score).__name__}; return a function of images and prompts",
    )

    @torch.no_grad()
    def score_and_check(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
        with _blame_reward(name, reward, RunError):
            rewards = score(images, prompts)
        fault = find_fault(rewards, len(images))
        if fault:
            raise RunError(f"{name} returned {fault}")
        return rewards

    return score_and_check


def make_filter(key: str, reward: Reward) -> Callable[[Prompt], bool]:
    """Return `reward.accepts`; what it raises becomes ConfigError that names the reward."""
    name = _name_reward(key, reward)

    def accepts(prompt: Prompt) -> bool:
        with _blame_reward(name, reward, ConfigError):
            return bool(reward.accepts(prompt))

    return accepts


def find_fault(rewards: object, count: int) -> str:
    """Say what is wrong with the rewards of `count` images; return "" if nothing is."""
    if not isinstance(rewards, Rewards):
        return f"a {type(rewards).__name__}; return make_rewards(images, NAME=scores)"
    if not rewards.weights or not rewards.weights.keys() <= rewards.parts.keys():
        weights, parts = list(rewards.weights), list(rewards.parts)
        return f"weights of {weights} and parts {parts}; give each weight a part of its name"
    for name, scores in {**rewards.parts, "total": rewards.total}.items():
        fault = _find_fault_of_part(scores, count)
        if fault:
            return f"the part {name}, which {fault}"
    if rewards.total.isinf().any():
        return "an infinite score; give NaN for an image that cannot be scored"
    if rewards.failed.shape != (count,) or (rewards.total.isnan() & ~rewards.failed).any():
        return "a total of NaN that is not marked as failed; use make_rewards(images, NAME=scores)"
    if len(rewards.notes) not in (0, count):
        return f"notes on {len(rewards.notes)} of {count} images; give one tuple per image or none"
    return ""


def _find_fault_of_part(scores: object, count: int) -> str:
    if not isinstance(scores, Tensor):
        return f"is a {type(scores).__name__}; give a tensor with one score per image"
    if scores.shape != (count,):
        return f"has shape {tuple(scores.shape)}; give one score per image, shape ({count},)"
    if not scores.is_floating_point():
        return f"has dtype {scores.dtype}; give floats, for example with .float()"
    if scores.requires_grad:
        return "has a gradient attached; compute it under torch.no_grad()"
    return ""


def _name_reward(key: str, reward: Reward) -> str:
    return f"{key} ({type(reward).__module__}.{type(reward).__qualname__})"


@contextlib.contextmanager
def _blame_reward(
    name: str, reward: Reward, kind: type[ConfigError] | type[RunError]
) -> Iterator[None]:
    """Raise an error of `kind` that names the reward, instead of whatever it raises.

    An error of memory that does not suffice is raised as it is.
    """
    try:
        yield
    except (ConfigError, RunError):
        raise
    # Rewards are code of users and may raise anything. SystemExit would end the run with exit code
    # 0, as if it were finished, so it counts as an exception too.
    except (Exception, SystemExit) as error:
        if is_shortage(error):
            raise
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise kind(
            f"{name} raised {words} ({_find_line(error, reward)}); fix it, and give the same"
            " command again"
        ) from error


def _find_line(error: BaseException, reward: Reward) -> str:
    """Return the last line of the reward's own file that led to an error."""
    file = getattr(sys.modules.get(type(reward).__module__), "__file__", None)
    frames = traceback.extract_tb(error.__traceback__)
    frame = ([frame for frame in frames if frame.filename == file] or frames)[-1]
    return f"{Path(frame.filename).name} line {frame.lineno}"


def rewards_from_parts(**parts: Float[Tensor, " B"]) -> Rewards:
    """Return rewards whose total is the first part; an image with a NaN there has failed.

    The other parts are logged as `reward/<name>` but not trained on.
    """
    name, total = next(iter(parts.items()))
    return Rewards(total=total, parts=parts, weights={name: 1.0}, failed=total.isnan())


def make_rewards(images: Float[Tensor, "B 3 H W"], **parts: Tensor) -> Rewards:
    """Return `rewards_from_parts(**parts)`, each part "B", on the device of the images.

    An image with a value that is not finite gets NaN in every part, whatever its scores were,
    because models and 8-bit conversions give ordinary numbers to a broken image. Raises ValueError
    unless each part has one float per image, without a gradient.
    """
    for name, part in parts.items():
        fault = _find_fault_of_part(part, len(images))
        if fault:
            raise ValueError(f"the part {name} {fault}")
    broken = ~images.isfinite().flatten(1).all(1)
    return rewards_from_parts(
        **{
            name: part.to(images.device).masked_fill(broken, math.nan)
            for name, part in parts.items()
        }
    )


def concatenate_notes(batches: Sequence[Rewards]) -> tuple[tuple[str, ...], ...]:
    """Join the notes of consecutive parts of a batch; a part without notes counts as silent.

    Returns an empty tuple if no part has notes.
    """
    if not any(batch.notes for batch in batches):
        return ()
    lines: list[tuple[str, ...]] = []
    for batch in batches:
        lines += batch.notes or [()] * len(batch.total)
    return tuple(lines)
