"""How many images a second each reward scores, and how much of that time training hides."""

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

from benches.standins import STANDINS
from grpo_guard import assets
from grpo_guard.data import geneval
from grpo_guard.reward import Reward, Scorer
from grpo_guard.types import Prompt, Rewards
from grpo_guard.world import captions, render
from grpo_guard.world.scene import SIZE
from lib import reading

EMBEDDED = (
    "pickscore", "pickscore_gold", "ocr", "ocr_exact", "geneval", "diversity", "statistics", "world", "mixture",
)  # fmt: skip
GROUP = 8  # images of a prompt
PHOTO = 512  # px, the side of pictures for rewards of published size
Round = Mapping[str, float]
"""Seconds of the parts of an iteration."""
CPU = torch.device("cpu")


def rewards(names: Sequence[str], images: int, rounds: int) -> Table:
    """Images a second of each reward, one after another: the median of some rounds after a first."""
    shown = Table("reward", "images", "images/s", "ms per image")
    for name in track(names, "scoring"):
        with loadable(name) as reward:
            prompts, pictures = material(reward, images, PHOTO if name in STANDINS else SIZE)
            seconds = paced(reward.load(CPU), pictures, prompts, rounds)
        shown.add_row(name, str(images), f"{images / seconds:.3g}", f"{1e3 * seconds / images:.3g}")
    return shown


@contextmanager
def loadable(name: str) -> Iterator[Reward]:
    """A reward of conf/, with random weights for as long as this is open where its own are published elsewhere."""
    with TemporaryDirectory() as folder:
        yield reading.reward(f"{name} {STANDINS[name](Path(folder))}" if name in STANDINS else name)


def material(
    reward: Reward, count: int, side: int
) -> tuple[list[Prompt], Float[Tensor, "B 3 H W"]]:
    """Prompts that a reward accepts, some images of each: scenes of them, or of others where the world knows none."""
    rng, world = np.random.default_rng(0), captions.prompts(heldout=False)
    accepted = [prompt for prompt in world if reward.accepts(prompt)]
    scenes = grouped(captions.draw(rng, count, accepted or world))[:count]
    prompts = (
        scenes
        if accepted
        else grouped([prompt for prompt in objects() if reward.accepts(prompt)])[:count]
    )
    return prompts, interpolate(
        tensor(render.render(scenes, rng)), (side, side), mode="bicubic"
    ).clamp(0, 1)


def grouped(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Every prompt as often as a group has images."""
    return [prompt for prompt in prompts for _ in range(GROUP)]


def objects() -> list[Prompt]:
    """The prompts of GenEval that ship with the package."""
    file = Path(assets.__file__).parent / "prompts" / "geneval_sample.jsonl"
    return [geneval.parse(line) for _, line in reading.lines("prompts", file)]


def paced(
    score: Scorer, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt], rounds: int
) -> float:
    """Median seconds for all the images, after a group that is not counted."""
    score(images[:GROUP], prompts[:GROUP])
    clocked = Clocked(score)
    for _ in range(rounds):
        clocked(images, prompts)
    return statistics.median(clocked.seconds)


class Clocked:
    """A scorer that keeps the seconds of each of its calls."""

    def __init__(self, score: Scorer) -> None:
        self.score, self.seconds = score, list[float]()

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
        start = time.perf_counter()
        found = self.score(images, prompts)
        self.seconds.append(time.perf_counter() - start)
        return found


def own(calls: Sequence[float], rounds: int) -> list[float]:
    """Seconds of a reward's calls in each of some rounds, after one that is not counted."""
    found: list[float] = np.array(calls).reshape(rounds + 1, -1).sum(1)[1:].tolist()
    return found


def hidden(
    after: Sequence[Round], beside: Sequence[Round], seconds: Sequence[float]
) -> list[float]:
    """The share of a reward's seconds that an iteration saves by scoring beside the rollout, round by round."""
    return [(drawn(a) - drawn(b)) / own for a, b, own in zip(after, beside, seconds, strict=True)]


def told(shares: Sequence[float], seconds: Sequence[float]) -> str:
    """Medians and ranges in a line."""
    share, own = statistics.median(shares), statistics.median(seconds)
    return (
        f"hidden: {share:.2f} ({min(shares):.2f} to {max(shares):.2f}) of the reward's {own:.2f} s"
    )


def drawn(row: Round) -> float:
    """Seconds until an iteration's images are drawn and scored."""
    return row["rollout"] + row["reward"]


def tensor(pictures: UInt8[np.ndarray, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
    """8-bit pictures in [0, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
