"""The records that flow through a run, and the two decorators that make records and components."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast, dataclass_transform, get_type_hints

import torch
from beartype import BeartypeConf
from beartype.door import is_bearable
from jaxtyping import Bool, Float, Int
from torch import Tensor

C = TypeVar("C", bound=type)
R = TypeVar("R")
_TOWER = BeartypeConf(is_pep484_tower=True)


class ConfigError(ValueError):
    """A setting that cannot be used: one line naming the key, the value and the remedy."""


class RunError(RuntimeError):
    """A run that cannot go on: one line that says why and what to do."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: C) -> C:
    """A frozen value that flows between the nouns of a run."""
    made: Any = dataclasses.dataclass(frozen=True, kw_only=True, eq=False)(cls)
    return cast(C, made)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def component(cls: C) -> C:
    """A frozen part of an experiment whose constructor arguments are its schema, type-checked when it is made.

    Numbers follow PEP 484's tower (an int is a float). A class checks its own ranges in `__post_init__`.
    """
    check = getattr(cls, "__post_init__", lambda self: None)

    def __post_init__(self: Any) -> None:
        _check_types(self)
        check(self)

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    made: Any = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    return cast(C, made)


def _check_types(instance: Any) -> None:
    hints = get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if not is_bearable(value, hints[field.name], conf=_TOWER):
            wanted = (
                str(hints[field.name])
                .replace("typing.", "")
                .replace("<class '", "")
                .replace("'>", "")
            )
            raise ConfigError(
                f"{field.name}={value!r} is a {type(value).__name__}; give a value of type {wanted}"
            )


def concatenate(records: Sequence[R]) -> R:
    """Join records of one kind row by row: tensors are concatenated, also those within; the rest is the first's."""

    def join(values: list[Any]) -> Any:
        if isinstance(values[0], Tensor):
            return torch.cat(values)
        if isinstance(values[0], Mapping):
            return {key: join([value[key] for value in values]) for key in values[0]}
        return concatenate(values) if dataclasses.is_dataclass(values[0]) else values[0]

    fields = dataclasses.fields(cast(Any, records[0]))
    return type(records[0])(**{f.name: join([getattr(r, f.name) for r in records]) for f in fields})


def map_tensors(records: R, change: Callable[[Tensor], Tensor]) -> R:
    """The record with every tensor in it, and in the records and mappings within, changed alike."""

    def visit(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        if isinstance(value, Mapping):
            return {key: visit(part) for key, part in value.items()}
        return map_tensors(value, change) if dataclasses.is_dataclass(value) else value

    known: Any = records
    return cast(
        R,
        dataclasses.replace(
            known, **{f.name: visit(getattr(known, f.name)) for f in dataclasses.fields(known)}
        ),
    )


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


@record
class Clause:
    """One demand of a prompt, as in GenEval: `count` objects called `name`, of a colour, placed relative to a clause.

    `position` is (relation, index of the clause referred to); `text` is what a clause named "word" must spell.
    """

    name: str
    count: int = 1
    color: str | None = None
    position: tuple[str, int] | None = None
    text: str | None = None


@record
class Prompt:
    """A prompt and what an image of it must show (empty for free text)."""

    text: str
    tag: str = ""
    include: tuple[Clause, ...] = ()
    exclude: tuple[Clause, ...] = ()


@record
class Batch:
    """The samples of one iteration, or those of them that live on one process: K of each prompt instance.

    Sample b is asked for `prompts[group[b]]`; `sample[b]`, below `total`, is the address of its randomness.
    """

    prompts: tuple[Prompt, ...]
    group: Int[Tensor, " B"]
    sample: Int[Tensor, " B"]
    total: int

    def prompts_by_sample(self) -> tuple[Prompt, ...]:
        """The prompt of every sample."""
        return tuple(self.prompts[g] for g in self.group.tolist())


@record
class Condition:
    """Encoded prompts, one row per unique prompt.

    A family without a pooled embedding has P = 0. `mask` is False on tokens that only fill a row up; without it, every
    token counts.
    """

    tokens: Float[Tensor, "N L C"]
    pooled: Float[Tensor, "N P"]
    mask: Bool[Tensor, "N L"] | None = None

    def __getitem__(self, rows: Int[Tensor, " B"]) -> Condition:
        return map_tensors(self, lambda x: x[rows])


@record
class Schedule:
    """Denoising steps, each linear in latent and velocity: `mean = x_gain * x + v_gain * v`, plus noise of `std`.

    Indexing picks steps: a whole schedule has T rows, `schedule[rows.step]` one per training row.
    """

    t: Float[Tensor, " R"]
    t_next: Float[Tensor, " R"]
    x_gain: Float[Tensor, " R"]
    v_gain: Float[Tensor, " R"]
    std: Float[Tensor, " R"]
    trained: Bool[Tensor, " R"]

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, rows: Any) -> Schedule:
        return Schedule(**{f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)})


@record
class Step:
    """A denoising step as a Gaussian: `x_next = mean + std * eps`, std the total standard deviation.

    `gain` is |d mean / d velocity|, by which a change of velocity moves the mean.
    """

    mean: Float[Tensor, "R ..."]
    std: Float[Tensor, " R"]
    gain: Float[Tensor, " R"]


@record
class Trajectory:
    """What a rollout leaves: the latents of every walked step and `sample`, those at time 0.

    `schedule` is the whole one; the noise of a step is regenerated from its address.
    """

    x: Float[Tensor, "B T1 ..."]
    sample: Float[Tensor, "B ..."]
    batch: Batch
    condition: Condition
    schedule: Schedule
    address: tuple[int, int]


@record
class Rewards:
    """Scores of a batch of images; a sample that could not be scored is NaN in `total` and counted in `failed`.

    The total is the sum of some of the parts, times their `weights`. `notes` say in lines of text what was seen in each
    image, and are empty where a reward has nothing to say; training drops them.
    """

    total: Float[Tensor, " B"]
    parts: Mapping[str, Float[Tensor, " B"]]
    weights: Mapping[str, float]
    failed: Bool[Tensor, " B"]
    notes: tuple[tuple[str, ...], ...] = ()


@record
class Verdict:
    """What rewards say of one picture: scores by the key of their metric, notes by the name of the reward."""

    scores: Mapping[str, float]
    notes: Mapping[str, tuple[str, ...]]


@record
class Rows:
    """Training rows: one (sample, step) pair each, taken from inside the SDE window.

    `old_mean` is the old policy's where it was recomputed; without it, the old policy is the one that sampled.
    """

    sample: Int[Tensor, " R"]
    step: Int[Tensor, " R"]
    advantage: Float[Tensor, " R"]
    old_mean: Float[Tensor, "R ..."] | None = None

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
        """Consecutive parts of at most `size` rows."""
        return [self[i : i + size] for i in range(0, len(self), size)]


@record
class Drift:
    """How far a policy has moved since the rollout, seen by each row's Gaussian step.

    With `d = mean_new - mean_old` and the step's own noise eps: `along = mean(eps d)`, `square = mean(d^2)`.
    """

    along: Float[Tensor, " R"]
    square: Float[Tensor, " R"]
    std: Float[Tensor, " R"]
    gain: Float[Tensor, " R"]
    dimensions: int


@record
class Objective:
    """What an update minimises: per-row losses, the log-ratios in them, and which are above or below the clip range."""

    loss: Float[Tensor, " R"]
    log_ratio: Float[Tensor, " R"]
    high: Bool[Tensor, " R"]
    low: Bool[Tensor, " R"]


@record
class Replay:
    """What an update saw of its rows: `penalty` was added to the loss, `gradient` is |d loss / d velocity|."""

    rows: Rows
    drift: Drift
    objective: Objective
    penalty: Float[Tensor, " R"]
    gradient: Float[Tensor, " R"]


Velocity = Callable[
    [Float[Tensor, "R ..."], Float[Tensor, " R"], Condition], Float[Tensor, "R ..."]
]
