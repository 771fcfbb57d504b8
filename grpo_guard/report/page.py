"""The comparison as one HTML file that needs no network, and its figures as files beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from grpo_guard.report.arms import Arm
from grpo_guard.report.comparisons import MARGIN
from grpo_guard.report.figures import files, histograms
from grpo_guard.report.figures.catalogue import list_figures
from grpo_guard.report.figures.histograms import Ridges
from grpo_guard.report.figures.panels import CurveFigure
from grpo_guard.report.figures.plot import draw_curves, save_figure
from grpo_guard.report.glossary import explain_scores, explain_statistics
from grpo_guard.report.markup import render, to_svg, write_html
from grpo_guard.report.notation import count_of
from grpo_guard.report.pictures import Film, make_films, make_pairs
from grpo_guard.report.results import SetResult
from grpo_guard.report.runs import Run
from grpo_guard.report.settings import differing_settings
from grpo_guard.report.state import list_state_notes
from grpo_guard.report.summary import summarise
from grpo_guard.schema import ConfigError, record

ABOUT = (
    "The runs fine-tuned a flow-matching text-to-image model with GRPO. In every iteration the"
    " policy samples images in {steps} denoising steps, a reward (the proxy) scores them, and"
    " clipped policy-gradient updates follow. A gold is a score that nothing is trained on."
    " GRPO-Guard (arXiv 2510.22319) claims that the importance ratio of the plain method (vanilla)"
    " is shifted and has a different spread at every step, so that its clip fails on one side and"
    " training over-optimises the proxy. Guard normalises the ratio and reweights the gradient."
    " Runs that differ in their seed alone are one arm. Steps are counted from noise (0); the last"
    " step of a rollout is never trained."
)

RULES_NOTE = (
    "Each claim is judged by a fixed rule on the numbers of these runs alone; the verdict does not"
    " extend to other models, rewards or settings. Ratios, clip fractions and gradient shares are"
    " averages over all iterations; they leave out the first update of each, because every ratio is"
    " 1 there. The standard error of a ratio's mean is the larger of two: from the spread of its"
    " rows, and from the scatter between iterations. Intervals of scores are 95 % intervals of a"
    " bootstrap over seeds and, within them, over prompts, with the differences between few seeds"
    " stretched to the width of Student's distribution. Where a run folder does not hold the"
    " scores of all prompts, resampled prompts are normal noise: binomial for exact and facts (for"
    " facts an upper bound), else the scatter from one evaluation to the next. A difference of a"
    f" gold matters from {MARGIN:g} on (of a gold beyond [0, 1], from that share of its first value"
    " on). An interval between the margins, not all above 0, shows no difference that matters."
)


@record
class PageSet:
    """A set of arms with its figures."""

    identifier: str
    """Beginning of the names of its files and sections."""
    result: SetResult
    """What the page says of it."""
    figures: tuple[CurveFigure, ...]
    """The figures of curves; those of which nothing was measured have no panels."""
    ridges: tuple[Ridges, ...]
    """The histograms."""

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms."""
        return self.result.arm_set.arms


def write_page(
    results: Sequence[SetResult], folder: Path, left_out: Sequence[str] = (), refresh: int = 0
) -> Path:
    """Write `index.html` and `figures/` into a folder, and return the path of the page.

    `left_out` are lines about folders that could not be read. With `refresh`, the page loads itself
    again after so many seconds. Raises ConfigError if the folder cannot be written.
    """
    sets = lay_out(results)
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        write_figures(sets, folder / "figures")
        html = compose_page(sets, left_out, refresh)
        write_html(folder / "index.html", html)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigError(
            f"{folder} cannot be written ({reason}); choose another with --out"
        ) from error
    return folder / "index.html"


def lay_out(results: Sequence[SetResult]) -> tuple[PageSet, ...]:
    """Return every set with its figures, under names that differ between sets."""
    return tuple(
        PageSet(
            identifier=f"set{number}",
            result=result,
            figures=tuple(
                replace(figure, name=f"set{number}-{figure.name}")
                for figure in list_figures(
                    result.arm_set,
                    result.settled,
                    result.study.settled if result.study else None,
                )
            ),
            ridges=histograms.list_ridges(result.settled.arms),
        )
        for number, result in enumerate(results, 1)
    )


def write_figures(sets: Sequence[PageSet], folder: Path) -> None:
    """Write every figure as PNG, SVG and CSV."""
    for page_set in sets:
        for figure in page_set.figures:
            if figure.panels:
                save_figure(draw_curves(figure), folder, figure.name)
                files.write_csv(figure, folder / f"{figure.name}.csv")
        if page_set.ridges:
            name = f"{page_set.identifier}-histograms"
            save_figure(histograms.draw_ridges(page_set.ridges), folder, name)
            histograms.write_counts(page_set.ridges, folder / f"{name}.csv")


def compose_page(sets: Sequence[PageSet], left_out: Sequence[str] = (), refresh: int = 0) -> str:
    """Return the page as HTML."""
    views = [_view_set(page_set) for page_set in sets]
    arms = {arm.label: arm for page_set in sets for arm in page_set.arms}
    runs = [run for page_set in sets for run in page_set.result.arm_set.runs]
    return render(
        "compare.html.j2",
        title=_title(runs, list(arms.values())),
        views=views,
        arms=list(arms.values()),
        has_seeds=any(len(arm.runs) > 1 for page_set in sets for arm in page_set.arms),
        notes=_list_notes(sets, runs, left_out),
        sections=_list_sections(views),
        refresh=refresh,
        ridges_reading=histograms.READING,
        rules_note=RULES_NOTE,
        about=ABOUT.format(steps=" or ".join(sorted({str(r.setting("steps")) for r in runs}))),
        figures=[files.to_json(figure) for page_set in sets for figure in page_set.figures],
        films={key: frames for view in views for key, frames in view["frames"].items()},
    )


def _view_set(page_set: PageSet) -> dict[str, Any]:
    """Return what the template shows of a set of arms."""
    result, arms = page_set.result, page_set.arms
    figures = [_view_figure(figure) for figure in page_set.figures]
    films = make_films(result.arm_set)
    scores = explain_scores(result.arm_set.runs)
    return {
        "id": page_set.identifier,
        "title": result.arm_set.title,
        "arms": arms,
        "scores": scores,
        "meanings": {score.name: score.text for score in scores},
        "statistics": explain_statistics(result.arm_set.runs),
        "lead": result.lead,
        "answers": result.answers + result.answers_behind,
        "claims": result.claims,
        "table": summarise(result),
        "settings": differing_settings([arm.runs[0].config for arm in arms]),
        "main": figures[0] if page_set.figures[0].panels else None,
        "figures": figures,
        "pairs": make_pairs(result.arm_set),
        "ridges": [
            to_svg(histograms.draw_ridges([one]), f"{one.arm.label}, {one.kind} ratio by step")
            for one in page_set.ridges
        ],
        "films": films,
        "frames": _number_films(films, page_set.identifier),
    }


def _view_figure(figure: CurveFigure) -> dict[str, Any]:
    return {
        "id": figure.name,
        "title": figure.title,
        "reading": figure.reading,
        "shows": figure.shows,
        "axes": figure.axes,
        "panels": figure.panels,
    }


def _number_films(films: Sequence[Film], identifier: str) -> dict[str, list[tuple[int, str]]]:
    return {
        f"{identifier}-{index}": [(frame.iteration, frame.source) for frame in film.frames]
        for index, film in enumerate(films)
    }


def _list_notes(sets: Sequence[PageSet], runs: Sequence[Run], left_out: Sequence[str]) -> list[str]:
    """Return what is left out, what state the runs are in, and what to keep in mind."""
    notes = [*(f"Left out: {line}" for line in left_out), *list_state_notes(runs)]
    for page_set in sets:
        notes += page_set.result.notes
    return list(dict.fromkeys(notes))


def _title(runs: Sequence[Run], arms: Sequence[Arm]) -> str:
    """Return the names of a few arms, or else how many there are."""
    if len(runs) == 1:
        return f"Run: {runs[0].label}"
    count = count_of(len(runs), "run", "runs")
    names = " against ".join(arm.label for arm in reversed(arms))
    return f"{names}: {count}" if len(arms) < 3 else f"{len(arms)} arms compared: {count}"


def _list_sections(views: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the identifiers and names of the sections; of several sets only the sets."""
    if len(views) > 1:
        return [(view["id"], view["title"]) for view in views]
    identifier = views[0]["id"]
    others = {
        "histograms": histograms.TITLE,
        "samples": "Samples",
        "summary": "Summary",
        "claims": "Claims",
    }
    return [
        *((figure["id"], figure["title"]) for figure in views[0]["figures"]),
        *((f"{identifier}-{name}", title) for name, title in others.items()),
        ("about", "About this page"),
    ]
