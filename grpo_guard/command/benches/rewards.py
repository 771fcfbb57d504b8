"""How many images a second each reward scores, and how much of that time a rollout hides."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jaxtyping import Float, UInt8
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn.functional import interpolate

from grpo_guard import assets
from grpo_guard.command.benches.standins import WRITERS
from grpo_guard.console import reading
from grpo_guard.data.geneval import parse_geneval
from grpo_guard.reward import Reward, Scorer
from grpo_guard.strategy.single import Single
from grpo_guard.types import Prompt, Rewards
from grpo_guard.world import captions, render
from grpo_guard.world.scene import SIZE

GROUP = 8
"""Images of a prompt."""
PHOTO_SIDE = 512
"""Side in px of the pictures for rewards of published size."""


def time_rewards(names: Sequence[str], images: int, rounds: int) -> Table:
    """Time rewards one after another, on the device of a run with strategy=single.

    A time is the median of some rounds, after a first one.
    """
    device = Single(device="auto", threads=None).start().device
    table = Table("reward", "images", "images/s", "ms per image", title=f"on {device}")
    for name in track(names, "scoring"):
        with open_reward(name) as reward:
            side = PHOTO_SIDE if name in WRITERS else SIZE
            prompts, pictures = draw_pictures(reward, images, side)
            score = reward.load(device)
            seconds = time_scorer(score, pictures.to(device), prompts, rounds)
        cells = f"{images / seconds:.3g}", f"{1e3 * seconds / images:.3g}"
        table.add_row(name, str(images), *cells)
    return table


@contextmanager
def open_reward(name: str) -> Iterator[Reward]:
    """Build a reward of conf/; one whose weights are not shipped gets random ones for a while."""
    if name not in WRITERS:
        yield reading.build_reward(name)
        return
    with TemporaryDirectory() as folder:
        settings = WRITERS[name](Path(folder))
        yield reading.build_reward(f"{name} {settings}")


def draw_pictures(
    reward: Reward, count: int, side: int
) -> tuple[list[Prompt], Float[Tensor, "B 3 H W"]]:
    """Draw prompts that a reward accepts, `GROUP` times each, and scenes of `side` px.

    If it accepts no prompt of the synthetic world, its prompts are GenEval's and the scenes show
    something else.
    """
    rng = np.random.default_rng(0)
    world = captions.all_prompts(heldout=False)
    accepted = [prompt for prompt in world if reward.accepts(prompt)]
    scenes = repeat_prompts(captions.draw_captions(rng, count, accepted or world))[:count]
    prompts = scenes
    if not accepted:
        real = [prompt for prompt in read_geneval_prompts() if reward.accepts(prompt)]
        prompts = repeat_prompts(real)[:count]
    pictures = interpolate(to_tensor(render.render(scenes, rng)), (side, side), mode="bicubic")
    return prompts, pictures.clamp(0, 1)


def repeat_prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return each prompt `GROUP` times."""
    return [prompt for prompt in prompts for _ in range(GROUP)]


def read_geneval_prompts() -> list[Prompt]:
    """Read the prompts of GenEval that ship with the package."""
    file = Path(assets.__file__).parent / "prompts" / "geneval_sample.jsonl"
    return [parse_geneval(line) for _, line in reading.read_lines("prompts", file)]


def time_scorer(
    score: Scorer, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt], rounds: int
) -> float:
    """Return the median seconds for all images, after one group that does not count."""
    score(images[:GROUP], prompts[:GROUP])
    timed = TimedScorer(score)
    for _ in range(rounds):
        timed(images, prompts)
    return statistics.median(timed.seconds)


class TimedScorer:
    """A scorer that records the seconds of each of its calls."""

    def __init__(self, score: Scorer) -> None:
        self.score = score
        self.seconds = list[float]()

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
        synchronize(images.device)
        start = time.perf_counter()
        rewards = self.score(images, prompts)
        synchronize(images.device)
        self.seconds.append(time.perf_counter() - start)
        return rewards


def synchronize(device: torch.device) -> None:
    """Wait until a device has computed everything so far; the CPU always has."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def sum_rounds(calls: Sequence[float], rounds: int) -> list[float]:
    """Sum a reward's calls in each of some rounds, after a first one that does not count."""
    sums: list[float] = np.array(calls).reshape(rounds + 1, -1).sum(1)[1:].tolist()
    return sums


def hidden_shares(
    after: Sequence[Mapping[str, float]],
    beside: Sequence[Mapping[str, float]],
    seconds: Sequence[float],
) -> list[float]:
    """Return the share of a reward's seconds that an iteration saves, round by round.

    `after` scores after the rollout and `beside` during it, in seconds by part of the iteration;
    `seconds` is what scoring alone takes.
    """
    return [
        (until_scored(a) - until_scored(b)) / own
        for a, b, own in zip(after, beside, seconds, strict=True)
    ]


def until_scored(seconds: Mapping[str, float]) -> float:
    """Return the seconds until the images of an iteration are drawn and scored."""
    return seconds["rollout"] + seconds["reward"]


def describe_hidden(shares: Sequence[float], seconds: Sequence[float]) -> str:
    """Describe the hidden shares in one line of medians and ranges."""
    share = statistics.median(shares)
    own = statistics.median(seconds)
    return (
        f"hidden: {share:.2f} ({min(shares):.2f} to {max(shares):.2f}) of the reward's {own:.2f} s"
    )


def to_tensor(pictures: UInt8[np.ndarray, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
    """Turn 8-bit pictures into floats in [0, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
