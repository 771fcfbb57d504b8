"""What rewards say of pictures, model beside model: estimates, a page, and every score for JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from grpo_guard.report.measure import Estimate
from grpo_guard.report.notation import number, typeset
from grpo_guard.report.page import document, row, svg
from grpo_guard.report.samples import Strip, sheet
from grpo_guard.types import Prompt, record

SHOWN = 16  # prompts on the page
DIFFERENCE = "difference"
LEGEND = (
    "Mean ± standard error; n pictures have the score, of those whose prompts the reward accepts. Pictures of one text"
    " count together in the standard error. A difference is the mean over the same prompts and noise."
)


@record
class Score:
    """A score of some pictures by every model; NaN where the prompt was not accepted, or scoring failed.

    `accepted` pictures of each model have prompts that the reward accepts; without any, `part` is empty.
    """

    reward: str
    part: str
    accepted: int
    values: Mapping[str, Float[ndarray, " N"]]

    @property
    def kept(self) -> Bool[ndarray, " N"]:
        """The pictures that have it, whichever model drew them."""
        kept: ndarray = np.logical_and.reduce(
            [np.isfinite(values) for values in self.values.values()]
        )
        return kept


@record
class Evaluation:
    """Pictures of the same prompts by some models (the first is the base, if there are two), and their scores.

    `notes` has, by model and picture, what each reward says of it in lines of text, if it says anything.
    """

    title: str
    about: Mapping[str, Any]
    prompts: Sequence[Prompt]
    files: Mapping[str, Sequence[str]]
    strips: Sequence[Strip]
    scores: Sequence[Score]
    notes: Mapping[str, Sequence[Mapping[str, Sequence[str]]]]


def estimates(score: Score, prompts: Sequence[Prompt]) -> dict[str, Estimate]:
    """The mean of every model and, of two, the mean of the second less the first, over the pictures kept of all."""
    columns, kept = dict(score.values), score.kept
    if len(columns) == 2:
        first, second = columns.values()
        columns[DIFFERENCE] = second - first
    texts = [prompt.text for prompt, keep in zip(prompts, kept, strict=True) if keep]
    return {name: estimate(values[kept], texts) for name, values in columns.items()}


def estimate(values: Float[ndarray, " N"], texts: Sequence[str]) -> Estimate:
    """The mean, and its standard error over texts: `sqrt(G / (G - 1) sum_g (sum_{i in g} x_i - mean)^2) / N`.

    With a picture of each text, this is the usual one.
    """
    if not len(values):
        return Estimate(value=math.nan, error=math.nan)
    _, text = np.unique(texts, return_inverse=True)
    sums = np.bincount(text, values - values.mean())
    groups = len(sums)
    error = (
        math.sqrt(groups / (groups - 1) * np.square(sums).sum()) / len(values)
        if groups > 1
        else math.nan
    )
    return Estimate(value=float(values.mean()), error=error)


def head(found: Evaluation) -> list[str]:
    """The names of the columns."""
    models = list(found.files)
    return ["reward", "score", "n", *models, *([DIFFERENCE] if len(models) == 2 else [])]


def rows(found: Evaluation) -> list[list[str]]:
    """A row per score."""
    return [_row(score, estimates(score, found.prompts)) for score in found.scores]


def _row(score: Score, estimated: Mapping[str, Estimate]) -> list[str]:
    count = int(score.kept.sum())
    failed = f" ({score.accepted - count} failed)" if count < score.accepted else ""
    cells = [told(value, signed=name == DIFFERENCE) for name, value in estimated.items()]
    return [score.reward, score.part or "-", f"{count}{failed}", *cells]


def told(found: Estimate, *, signed: bool) -> str:
    """A mean to two digits of its error, if it has one."""
    if math.isnan(found.error) or found.error == 0:
        return ("+" if signed and found.value > 0 else "") + number(found.value)
    digits = max(0, 1 - math.floor(math.log10(found.error)))
    return f"{found.value:{'+' if signed else ''}.{digits}f} ± {found.error:.{digits}f}"


def described(found: Evaluation) -> dict[str, Any]:
    """All of it for JSON, where null is what could not be measured."""
    return {
        **found.about,
        "scores": [_summed(score, found.prompts) for score in found.scores],
        "pictures": [_picture(found, index) for index in range(len(found.prompts))],
    }


def _summed(score: Score, prompts: Sequence[Prompt]) -> dict[str, Any]:
    count = int(score.kept.sum())
    known = {
        "reward": score.reward,
        "score": score.part,
        "n": count,
        "failed": score.accepted - count,
    }
    return known | {
        name: {"mean": _finite(value.value), "standard_error": _finite(value.error)}
        for name, value in estimates(score, prompts).items()
    }


def _picture(found: Evaluation, index: int) -> dict[str, Any]:
    """A prompt, with what each model has drawn of it and how that was scored."""
    prompt = found.prompts[index]
    models = {
        model: {
            "file": files[index],
            "scores": {
                f"{score.reward}/{score.part}": _finite(float(score.values[model][index]))
                for score in found.scores
                if score.part
            },
            "notes": {name: list(lines) for name, lines in found.notes[model][index].items()},
        }
        for model, files in found.files.items()
    }
    return {"prompt": prompt.text, "tag": prompt.tag, **models}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def page(found: Evaluation) -> str:
    """An HTML page that needs nothing else."""
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head(found)[1:])
    table = f"<thead><tr><th>{head(found)[0]}</th>{cells}</tr></thead><tbody>{''.join(map(row, rows(found)))}</tbody>"
    about = "; ".join(f"{key}: {value}" for key, value in found.about.items())
    captions = [prompt.text for prompt in found.prompts][:SHOWN]
    shown = [
        replace(strip, tiles=strip.tiles[:SHOWN], notes=strip.notes[:SHOWN])
        for strip in found.strips
    ]
    figure = sheet(shown, captions)
    legend = f"The first {len(captions)} of {len(found.prompts)} pictures of each model."
    body = [
        f"<h1>{escape(found.title)}</h1>",
        f'<p class="muted">{escape(typeset(about))}</p>',
        f'<div class="scroll"><table>{table}</table></div>',
        f'<p class="note">{escape(LEGEND)}</p>',
        "<h2>Pictures</h2>",
        f'<figure><div class="scroll">{svg(figure, legend)}</div><figcaption>{legend}</figcaption></figure>',
        _seen(found),
    ]
    return document(found.title, "\n".join(body))


def _seen(found: Evaluation) -> str:
    """A row per picture that is shown and of which a reward says something."""
    shown = [
        (prompt.text, *notes)
        for prompt, *notes in zip(found.prompts, *found.notes.values(), strict=True)
    ][:SHOWN]
    rows = [
        f'<tr><th scope="row">{escape(text)}</th>{"".join(map(_lines, notes))}</tr>'
        for text, *notes in shown
        if any(notes)
    ]
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(strip.label)}</th>' for strip in found.strips)
    table = f"<thead><tr><th>prompt</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<h3>What was seen in them</h3><div class="scroll"><table class="wrap seen">{table}</table></div>'


def _lines(notes: Mapping[str, Sequence[str]]) -> str:
    return f"<td>{escape(joined(notes)).replace(chr(10), '<br>')}</td>"


def joined(notes: Mapping[str, Sequence[str]]) -> str:
    """Notes on a picture as text, each line after the name of its reward."""
    return "\n".join(f"{name}: {line}" for name, lines in notes.items() for line in lines)
