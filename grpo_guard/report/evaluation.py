"""The page of scripts/evaluate.py: scores of pictures, models side by side, also as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from grpo_guard.metrics import finite_or_none
from grpo_guard.report.curves import Estimate
from grpo_guard.report.figures.samples import Strip, draw_strips
from grpo_guard.report.glossary import UNKNOWN, Meaning
from grpo_guard.report.markup import render, to_svg
from grpo_guard.report.notation import ROUNDING, format_number, join_notes
from grpo_guard.schema import record
from grpo_guard.types import Prompt

PICTURES_ON_PAGE = 16  # of each model
DIFFERENCE = "difference"
LEGEND = (
    "Mean ± standard error. n is the number of pictures that have the score, of those whose prompts"
    " the reward accepts. Pictures of the same text count together in the standard error. A"
    " difference is the mean over the same prompts and noise."
)


@record
class Score:
    """One score of the pictures of every model."""

    reward: str
    """Name of the reward."""
    part: str
    """Name of the score among those of its reward; "" if the reward accepts none of the prompts."""
    accepted: int
    """Number of pictures of each model whose prompts the reward accepts."""
    values: Mapping[str, Float[ndarray, " N"]]
    """Scores by model; NaN if the prompt was not accepted or scoring failed."""

    @property
    def is_complete(self) -> Bool[ndarray, " N"]:
        """Whether each picture has the score from every model."""
        finite = [np.isfinite(values) for values in self.values.values()]
        complete: ndarray = np.logical_and.reduce(finite)
        return complete

    @property
    def count(self) -> int:
        """Number of pictures that have the score from every model."""
        return int(self.is_complete.sum())


@record
class EvaluationReport:
    """Pictures of the same prompts by one or two models, and their scores."""

    title: str
    """Title of the page."""
    about: Mapping[str, Any]
    """What was evaluated, such as the run and the checkpoint."""
    prompts: Sequence[Prompt]
    """The prompt of each picture."""
    files: Mapping[str, Sequence[str]]
    """Picture files by model. Of two models, the first is the base model."""
    strips: Sequence[Strip]
    """The pictures on the page, one strip per model."""
    scores: Sequence[Score]
    """The scores, in the order of the table."""
    meanings: Mapping[str, str]
    """What scores mean, by the name of the part; those that do not say it are missing."""
    notes: Mapping[str, Sequence[Mapping[str, Sequence[str]]]]
    """By model and picture: lines of text under the name of each reward that noted something."""


def estimate_means(score: Score, prompts: Sequence[Prompt]) -> dict[str, Estimate]:
    """Return the mean of every model and, for two models, of the second minus the first.

    Only the pictures that have the score from every model count.
    """
    columns = dict(score.values)
    if len(columns) == 2:
        first, second = columns.values()
        columns[DIFFERENCE] = second - first
    complete = score.is_complete
    texts = [prompt.text for prompt, keep in zip(prompts, complete, strict=True) if keep]
    return {name: estimate_mean(values[complete], texts) for name, values in columns.items()}


def estimate_mean(values: Float[ndarray, " N"], texts: Sequence[str]) -> Estimate:
    """Return the mean and its standard error over texts, because pictures of a text are alike.

    The error is `sqrt(G / (G - 1) sum_g (sum_{i in g} x_i - mean)^2) / N` for G texts. With one
    picture of each text, it is the usual standard error. It is NaN for fewer than two texts.
    """
    if not len(values):
        return Estimate(value=math.nan, error=math.nan)
    _, text = np.unique(texts, return_inverse=True)
    sums = np.bincount(text, values - values.mean())
    groups = len(sums)
    error = math.nan
    if groups > 1:
        error = math.sqrt(groups / (groups - 1) * np.square(sums).sum()) / len(values)
    return Estimate(value=float(values.mean()), error=error)


def column_names(report: EvaluationReport) -> list[str]:
    """Return the heads of the table of scores."""
    models = list(report.files)
    return ["reward", "score", "n", *models, *([DIFFERENCE] if len(models) == 2 else [])]


def table_rows(report: EvaluationReport) -> list[list[str]]:
    """Return one row of text per score."""
    return [_format_row(score, estimate_means(score, report.prompts)) for score in report.scores]


def _format_row(score: Score, means: Mapping[str, Estimate]) -> list[str]:
    failed = score.accepted - score.count
    count = f"{score.count} ({failed} failed)" if failed else f"{score.count}"
    cells = [format_estimate(mean, signed=name == DIFFERENCE) for name, mean in means.items()]
    return [score.reward, score.part or "-", count, *cells]


def format_estimate(estimate: Estimate, *, signed: bool) -> str:
    """Write a mean with its error, to two digits of the error if there is one."""
    if not estimate.error > ROUNDING * abs(estimate.value):
        return ("+" if signed and estimate.value > 0 else "") + format_number(estimate.value)
    digits = max(0, 1 - math.floor(math.log10(estimate.error)))
    sign = "+" if signed else ""
    return f"{estimate.value:{sign}.{digits}f} ± {estimate.error:.{digits}f}"


def to_json(report: EvaluationReport) -> dict[str, Any]:
    """Return the whole report for JSON; a number that could not be measured is null."""
    return {
        **report.about,
        "scores": [_score_to_json(score, report.prompts) for score in report.scores],
        "pictures": [_picture_to_json(report, index) for index in range(len(report.prompts))],
    }


def _score_to_json(score: Score, prompts: Sequence[Prompt]) -> dict[str, Any]:
    means = {
        name: {"mean": finite_or_none(mean.value), "standard_error": finite_or_none(mean.error)}
        for name, mean in estimate_means(score, prompts).items()
    }
    return {
        "reward": score.reward,
        "score": score.part,
        "n": score.count,
        "failed": score.accepted - score.count,
        **means,
    }


def _picture_to_json(report: EvaluationReport, index: int) -> dict[str, Any]:
    """Return a prompt with the pictures that the models drew of it, their scores and notes."""
    models = {}
    for model, files in report.files.items():
        scores = {
            f"{score.reward}/{score.part}": finite_or_none(float(score.values[model][index]))
            for score in report.scores
            if score.part
        }
        notes = {name: list(lines) for name, lines in report.notes[model][index].items()}
        models[model] = {"file": files[index], "scores": scores, "notes": notes}
    prompt = report.prompts[index]
    return {"prompt": prompt.text, "tag": prompt.tag, **models}


def render_evaluation(report: EvaluationReport) -> str:
    """Return an HTML page that needs no other file."""
    captions = [prompt.text for prompt in report.prompts][:PICTURES_ON_PAGE]
    strips = [
        replace(strip, tiles=strip.tiles[:PICTURES_ON_PAGE], notes=strip.notes[:PICTURES_ON_PAGE])
        for strip in report.strips
    ]
    legend = f"The first {len(captions)} of {len(report.prompts)} pictures of each model."
    return render(
        "evaluation.html.j2",
        title=report.title,
        about="; ".join(f"{key}: {value}" for key, value in report.about.items()),
        columns=column_names(report),
        rows=table_rows(report),
        score_legend=LEGEND,
        meanings=_list_meanings(report),
        drawing=to_svg(draw_strips(strips, captions), legend),
        picture_legend=legend,
        models=[strip.label for strip in report.strips],
        notes=_list_notes(report),
    )


def _list_meanings(report: EvaluationReport) -> tuple[Meaning, ...]:
    """Return what the scores of the table mean."""
    parts = dict.fromkeys(score.part for score in report.scores if score.part)
    return tuple(
        Meaning(name=part, role="", text=report.meanings.get(part, UNKNOWN)) for part in parts
    )


def _list_notes(report: EvaluationReport) -> list[tuple[str, list[str]]]:
    """Return the prompt and the notes of every model, for the pictures that have notes."""
    rows = []
    for index, prompt in enumerate(report.prompts[:PICTURES_ON_PAGE]):
        notes = [by_picture[index] for by_picture in report.notes.values()]
        if any(notes):
            rows.append((prompt.text, [join_notes(each) for each in notes]))
    return rows
