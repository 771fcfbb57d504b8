"""The records that flow through a run, with the shapes of their tensors.

Letters in shapes: B samples, R training rows, T denoising steps, N prompts.
Times run from 1 (noise) to 0 (image).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grpo_guard.schema import record

R = TypeVar("R")


def concatenate(records: Sequence[R]) -> R:
    """Join records of one kind row by row.

    Tensors are concatenated, also in nested records and mappings. Everything else is taken from
    the first record.
    """

    def join(values: list[Any]) -> Any:
        first = values[0]
        if isinstance(first, Tensor):
            return torch.cat(values)
        if isinstance(first, Mapping):
            return {key: join([value[key] for value in values]) for key in first}
        return concatenate(values) if dataclasses.is_dataclass(first) else first

    names = [field.name for field in dataclasses.fields(cast(Any, records[0]))]
    return type(records[0])(**{name: join([getattr(r, name) for r in records]) for name in names})


def map_tensors(value: R, change: Callable[[Tensor], Tensor]) -> R:
    """Return a copy of a record in which `change` was applied to every tensor.

    Tensors in nested records and mappings change too.
    """
    known: Any = value
    parts = {f.name: _change(getattr(known, f.name), change) for f in dataclasses.fields(known)}
    return cast(R, dataclasses.replace(known, **parts))


# A function within `map_tensors` that calls itself would be a reference cycle, in which whatever
# `change` refers to stays alive: a session, for example.
def _change(part: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(part, Tensor):
        return change(part)
    if isinstance(part, Mapping):
        return {key: _change(inner, change) for key, inner in part.items()}
    return map_tensors(part, change) if dataclasses.is_dataclass(part) else part


@record
class Clause:
    """One demand of a prompt, as in GenEval: so many objects of a kind, colour and place."""

    name: str
    """Kind of object, such as "cup"; "word" demands written text."""
    count: int = 1
    """How many of them."""
    color: str | None = None
    """Their colour; None accepts any."""
    position: tuple[str, int] | None = None
    """(relation, index of the clause it refers to), such as ("left of", 0); None: anywhere."""
    text: str | None = None
    """What a clause named "word" must spell; None for other clauses."""


@record
class Prompt:
    """A prompt and what an image of it must show."""

    text: str
    """The prompt itself."""
    tag: str = ""
    """Kind of prompt, such as GenEval's "counting"; empty if there is none."""
    include: tuple[Clause, ...] = ()
    """What the image must show; empty for free text."""
    exclude: tuple[Clause, ...] = ()
    """What the image must not show."""


@record
class Batch:
    """The samples of one iteration, or those of them that live on one process."""

    prompts: tuple[Prompt, ...]
    """The prompt instances of the whole iteration; two draws of one text are two instances."""
    group: Int[Tensor, " B"]
    """Index into `prompts` for each sample. The samples of one prompt instance are a group."""
    sample: Int[Tensor, " B"]
    """Number of each sample in the whole iteration: the address of its randomness."""
    total: int
    """Number of samples in the whole iteration, on all processes."""

    def prompts_by_sample(self) -> tuple[Prompt, ...]:
        """Return the prompt of every sample."""
        return tuple(self.prompts[g] for g in self.group.tolist())


@record
class Condition:
    """Encoded prompts, one row per prompt; rows are indexed, never repeated in memory."""

    tokens: Float[Tensor, "N L C"]
    """Token embeddings."""
    pooled: Float[Tensor, "N P"]
    """Pooled embeddings; P = 0 for a family that has none."""
    mask: Bool[Tensor, "N L"] | None = None
    """False on padding tokens; None if every token counts."""

    def __getitem__(self, rows: Int[Tensor, " B"]) -> Condition:
        return map_tensors(self, lambda x: x[rows])


@record
class Schedule:
    """Denoising steps, linear in latent and velocity: `x_next = x_gain x + v_gain v + std eps`.

    A whole schedule has T rows. Indexing picks steps: `schedule[rows.step]` has one per row.
    """

    t: Float[Tensor, " R"]
    """Time at which a step starts, in (0, 1]."""
    t_next: Float[Tensor, " R"]
    """Time at which it ends, in [0, 1)."""
    x_gain: Float[Tensor, " R"]
    """Factor of the latent in the step's mean."""
    v_gain: Float[Tensor, " R"]
    """Factor of the velocity in the step's mean; negative."""
    std: Float[Tensor, " R"]
    """Total standard deviation of the step; 0 for a step of the ODE."""
    trained: Bool[Tensor, " R"]
    """True inside the SDE window: these steps are trained."""

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, rows: Any) -> Schedule:
        return Schedule(**{f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)})


@record
class Step:
    """A denoising step as a Gaussian: `x_next = mean + std * eps`."""

    mean: Float[Tensor, "R ..."]
    """Mean of the next latents."""
    std: Float[Tensor, " R"]
    """Total standard deviation."""
    gain: Float[Tensor, " R"]
    """|d mean / d velocity|: how far a change of velocity moves the mean."""


@record
class Trajectory:
    """What a rollout leaves; the noise of its steps is regenerated from `address`."""

    x: Float[Tensor, "B T1 ..."]
    """Latents at the start and after every step that was walked one by one."""
    sample: Float[Tensor, "B ..."]
    """Latents at time 0."""
    batch: Batch
    """The samples."""
    condition: Condition
    """The encoded prompts, one row per entry of `batch.prompts`."""
    schedule: Schedule
    """All T steps."""
    address: tuple[int, int]
    """(seed, iteration)."""


@record
class Rewards:
    """Scores of a batch of images."""

    total: Float[Tensor, " B"]
    """Weighted sum of the parts in `weights`; NaN for an image that could not be scored."""
    parts: Mapping[str, Float[Tensor, " B"]]
    """Scores by name; not all of them need count towards the total."""
    weights: Mapping[str, float]
    """Weights of the parts that the total sums."""
    failed: Bool[Tensor, " B"]
    """True for an image that could not be scored."""
    notes: tuple[tuple[str, ...], ...] = ()
    """Lines of text on what was seen in each image; empty if the reward has nothing to say."""


@record
class ImageScores:
    """Scores of one picture and the rewards' notes on it."""

    scores: Mapping[str, float]
    """Scores by the key of their metric, such as "eval/gold/exact"."""
    notes: Mapping[str, tuple[str, ...]]
    """Lines of text by the name of the reward."""


@record
class Pictures:
    """What an evaluation shows: a few of its pictures, and the scores of all its prompts."""

    images: Float[Tensor, "N 3 H W"]
    """The pictures, in [0, 1]."""
    captions: tuple[str, ...]
    """Their prompts."""
    scores: tuple[ImageScores, ...]
    """Their scores and notes."""
    by_prompt: Mapping[str, Sequence[float]]
    """The scores of all prompts by metric key; NaN where a reward gave a prompt none."""


@record
class Rows:
    """Training rows: one (sample, step) pair each, taken from inside the SDE window."""

    sample: Int[Tensor, " R"]
    """Row of the sample in the trajectory."""
    step: Int[Tensor, " R"]
    """Number of the denoising step."""
    advantage: Float[Tensor, " R"]
    """Advantage of the sample."""
    old_mean: Float[Tensor, "R ..."] | None = None
    """The old policy's mean if it was recomputed; None: the old policy is the one that sampled."""

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, rows: Any) -> Rows:
        old = None if self.old_mean is None else self.old_mean[rows]
        return Rows(
            sample=self.sample[rows],
            step=self.step[rows],
            advantage=self.advantage[rows],
            old_mean=old,
        )

    def split(self, size: int) -> list[Rows]:
        """Split into consecutive parts of at most `size` rows."""
        return [self[i : i + size] for i in range(0, len(self), size)]


@record
class Drift:
    """How far a policy has moved since the rollout, with `d = mean_new - mean_old`."""

    along: Float[Tensor, " R"]
    """mean(eps d), with the noise eps that the rollout drew."""
    square: Float[Tensor, " R"]
    """mean(d^2)."""
    std: Float[Tensor, " R"]
    """Standard deviation of the step."""
    gain: Float[Tensor, " R"]
    """|d mean / d velocity| of the step."""
    dimensions: int
    """Latent dimensions D over which the means were taken."""


@record
class Objective:
    """What an update minimises, row by row."""

    loss: Float[Tensor, " R"]
    """Loss of each row; the loss of an update is their mean."""
    log_ratio: Float[Tensor, " R"]
    """The log-ratio in it."""
    high: Bool[Tensor, " R"]
    """True where the log-ratio lies above the clip range."""
    low: Bool[Tensor, " R"]
    """True where the log-ratio lies below the clip range."""


@record
class Replay:
    """What an update saw of its rows."""

    rows: Rows
    """The rows."""
    drift: Drift
    """How far the policy had moved on them."""
    objective: Objective
    """The objective of each row."""
    penalty: Float[Tensor, " R"]
    """KL penalty that was added to each row's loss."""
    gradient: Float[Tensor, " R"]
    """|d loss / d velocity| of each row."""


Velocity = Callable[
    [Float[Tensor, "R ..."], Float[Tensor, " R"], Condition], Float[Tensor, "R ..."]
]
"""A policy: (latents, times in [0, 1], condition with one row per latent) -> velocities."""
