"""Arms: runs that differ in their seed alone; and sets of arms that can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from grpo_guard.lifecycle.immaterial import flatten_settings
from grpo_guard.report import curves, per_step
from grpo_guard.report.notation import format_percent
from grpo_guard.report.runs import Histograms, Run
from grpo_guard.report.settings import differing_settings, label_runs
from grpo_guard.schema import record

REFERENCE = "vanilla"
"""Variant that the other arms are compared with; without it, the first arm is."""
INCOMPARABLE = ("reward.", "backbone.")
"""Beginnings of the settings that a proxy depends on. Runs that differ in them share no axis."""


@record
class Arm:
    """Runs that differ in their seed alone."""

    label: str
    """Name of the arm on the page."""
    color: int
    """Number of its colour."""
    runs: tuple[Run, ...]
    """Its runs, by seed."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seed of each run."""
        return tuple(seed_of(run) for run in self.runs)

    @property
    def variant(self) -> str:
        """Name of the clipping variant, such as "guard"."""
        return self.runs[0].variant

    @cached_property
    def pooled(self) -> Run:
        """The runs as one run with the iterations of all, so that averages are over all seeds."""
        return replace(
            self.runs[0],
            label=self.label,
            rows=tuple(chain.from_iterable(run.rows for run in self.runs)),
            histograms=_pool_histograms([run.histograms for run in self.runs if run.histograms]),
        )


@record
class ArmSet:
    """Arms with the same reward and backbone, the reference first."""

    title: str
    """What tells it from other sets; empty if there is only one."""
    arms: tuple[Arm, ...]
    """The arms."""

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs of all arms."""
        return tuple(chain.from_iterable(arm.runs for arm in self.arms))


def group_arms(runs: Sequence[Run]) -> tuple[ArmSet, ...]:
    """Group runs by reward and backbone, and within that by everything but their seed."""
    groups = _group_by(runs, lambda flat: _select(flat, is_comparable=False))
    titles = [""]
    if len(groups) > 1:
        configs = [_unflatten_choice(group[0]) for group in groups]
        names = [f"set {i + 1}" for i in range(len(groups))]
        titles = list(label_runs(configs, names, with_usual=True))
        titles = [title.removeprefix("set, ") for title in titles]
    colors: dict[str, int] = {}
    return tuple(
        ArmSet(title=title, arms=_make_arms(group, colors))
        for title, group in zip(titles, groups, strict=True)
    )


def share_axes(first: ArmSet, second: ArmSet) -> bool:
    """Return whether two sets have the same reward and backbone, so that their proxies compare."""
    one, other = (
        _select(flatten_settings(arm_set.runs[0].config), is_comparable=False)
        for arm_set in (first, second)
    )
    return one == other


def seed_of(run: Run) -> int:
    """Return the seed of a run; 0 if its configuration has none."""
    seed = run.config.get("seed", 0)
    return seed if isinstance(seed, int) else 0


def first_of_seeds(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Return the first run of each seed: one that was repeated is no further evidence.

    Runs whose configuration has no seed are all returned.
    """
    firsts = {run.config.get("seed", run.folder): run for run in reversed(runs)}
    return tuple(run for run in runs if run in firsts.values())


def seed_label(run: Run) -> str:
    """Return the seed of a run in words."""
    return f"seed {seed_of(run)}"


def mean_label(arm: Arm) -> str:
    """Return in words what a mean over an arm is of."""
    count = len(arm.runs)
    return f"mean of {count} seeds" if count > 1 else seed_label(arm.runs[0])


def _group_by(runs: Sequence[Run], key: Any) -> list[list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(repr(sorted(key(flatten_settings(run.config)).items())), []).append(run)
    return list(groups.values())


def _select(flat: Mapping[str, Any], *, is_comparable: bool) -> dict[str, Any]:
    """Return the settings that decide a set, or else those that decide an arm.

    A setting that is null counts as absent, as it is in runs that are older than the setting.
    """
    return {
        key: value
        for key, value in flat.items()
        if key.startswith(INCOMPARABLE) != is_comparable and key != "seed" and value is not None
    }


def _unflatten_choice(run: Run) -> dict[str, Any]:
    """Return the part of a configuration that decides the set, with a name that all sets share."""
    parts = {key: run.config.get(key) for key in ("reward", "backbone")}
    return parts | {"clipping": {"name": "set"}}


def _make_arms(runs: Sequence[Run], colors: dict[str, int]) -> tuple[Arm, ...]:
    """Return the arms of a set; an arm has the colour of the arm of its name in another set."""
    groups = _group_by(runs, lambda flat: _select(flat, is_comparable=True))
    # sorting is stable: a reference comes first, and the others stay in order
    groups.sort(key=lambda group: group[0].variant != REFERENCE)
    configs = [{k: v for k, v in group[0].config.items() if k != "seed"} for group in groups]
    labels = label_runs(configs, [group[0].folder.name for group in groups])
    arms = []
    for label, group in zip(labels, groups, strict=True):
        color = colors.setdefault(label, len(colors))
        arms.append(Arm(label=label, color=color, runs=tuple(sorted(group, key=seed_of))))
    return tuple(arms)


def _pool_histograms(parts: Sequence[Histograms]) -> Histograms | None:
    """Join histograms; those with other edges than the first are left out."""
    alike = [part for part in parts if np.array_equal(part.edges, parts[0].edges)]
    if not alike:
        return None
    keys = sorted(set.intersection(*(set(part.counts) for part in alike)))
    return Histograms(
        iteration=np.concatenate([part.iteration for part in alike]),
        edges=alike[0].edges,
        counts={key: np.concatenate([part.counts[key] for part in alike]) for key in keys},
    )


def cautions(reference: Arm, other: Arm) -> tuple[str, ...]:
    """Return reasons why two arms may differ for something else than their variant."""
    texts = (
        caution_few_seeds(reference, other),
        _unpaired(reference, other),
        _unequal_clipping(reference, other),
        _other_settings(reference, other),
    )
    return tuple(text for text in texts if text)


def caution_few_seeds(*arms: Arm) -> str:
    """Return what to keep in mind about an arm of few seeds; "" if all have more."""
    count = min(len(arm.runs) for arm in arms)
    if count == 1:
        return "An arm has only one seed, so its intervals leave out how much seeds differ."
    if count < 5:
        return f"An arm has only {count} seeds, so its intervals are themselves uncertain."
    return ""


def _unpaired(reference: Arm, other: Arm) -> str:
    if set(reference.seeds) & set(other.seeds):
        return ""
    return f"{reference.label} and {other.label} share no seed, so their runs are paired in order."


def _unequal_clipping(reference: Arm, other: Arm) -> str:
    first, second = (_clipped_share(arm) for arm in (reference, other))
    # a NaN (no clip fractions) compares as False and gives no caution
    if not max(first, second) > 1.5 * min(first, second):
        return ""
    return (
        f"The arms clip unequal shares of their rows ({reference.label} {format_percent(first)},"
        f" {other.label} {format_percent(second)}): the clip range may cause a difference, not the"
        " ratio."
    )


def _clipped_share(arm: Arm) -> float:
    shares = per_step.clipped_shares(arm.pooled)
    return float((shares.high.mean() + shares.low.mean()) / 2) if shares else np.nan


def _other_settings(reference: Arm, other: Arm) -> str:
    """Name the settings, apart from the objective's, in which two arms differ."""
    differing = differing_settings([reference.runs[0].config, other.runs[0].config])
    keys = [key for key in differing if not key.startswith("clipping.") and key != "seed"]
    if not keys:
        return ""
    values = {key: " against ".join(value or "none" for value in differing[key]) for key in keys}
    changes = ", ".join(f"{key} ({value})" for key, value in values.items())
    return f"{other.label} also differs from {reference.label} in {changes}."


def proxy_names(arms: Sequence[Arm]) -> tuple[str, ...]:
    """Return the proxies of the arms; there is one unless runs evaluate none."""
    names = {curves.proxy_name(run) for arm in arms for run in arm.runs}
    return tuple(sorted(name for name in names if name))
