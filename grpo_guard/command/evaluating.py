"""What scripts/evaluate.py does once its arguments are parsed."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from grpo_guard.console import cli, drawing, reading, sources
from grpo_guard.diagnostics.memory import explain_shortage
from grpo_guard.report import evaluation
from grpo_guard.report.evaluation import EvaluationReport, Score
from grpo_guard.report.figures.samples import Strip
from grpo_guard.report.glossary import fill_meanings
from grpo_guard.report.markup import write_html
from grpo_guard.report.notation import join_notes
from grpo_guard.reward import Reward, Scorer, load_scorer, make_filter
from grpo_guard.schema import record, require
from grpo_guard.types import Prompt


@record
class RewardScores:
    """What one reward returned for the pictures of all models."""

    scores: Sequence[Score]
    """Its scores."""
    notes: Mapping[str, Mapping[int, Sequence[str]]]
    """Its notes, by model and row of the picture."""


def evaluate_and_print(args: argparse.Namespace) -> None:
    """Score the pictures, print the table, write the page and print its path."""
    cli.hide_progress_bars()
    out = args.out or args.source / "evaluation"
    report = evaluate(args, out)
    page = write_report(out, report)
    Console().print(build_score_table(report))
    print(page)


def evaluate(args: argparse.Namespace, out: Path) -> EvaluationReport:
    """Score the pictures with every reward; those of a run are written into the output folder."""
    source = sources.load_source(args)
    prompts = source.prompts
    device = drawing.choose_device(args.device)
    with cli.report_unwritable(out):
        out.mkdir(parents=True, exist_ok=True)
    rewards = build_rewards(args.rewards) if args.rewards else source.rewards
    rows = find_accepted(rewards, prompts)
    # loaded before the pictures are drawn, so that a reward that cannot be loaded fails early
    with explain_shortage(device, "loading a reward of --rewards"):
        scorers = {
            name: load_scorer(f"--rewards={name}", rewards[name], device)
            for name in rewards
            if rows[name]
        }
    pictures = source.get_pictures(out)
    results = {}
    for name in track(rewards, "scoring", console=Console(stderr=True)):
        if rows[name]:
            results[name] = score_pictures(
                name, scorers[name], rows[name], pictures, prompts, device
            )
        else:
            results[name] = score_nothing(name, list(pictures), len(prompts))
    notes = {model: collect_notes(results, model, len(prompts)) for model in pictures}
    strips = [make_strip(source.labels[model], pictures[model], notes[model]) for model in pictures]
    return EvaluationReport(
        title=f"Evaluation: {args.source.resolve().name}",
        about=source.about,
        prompts=prompts,
        files=source.files,
        strips=strips,
        scores=[score for result in results.values() for score in result.scores],
        meanings=explain_rewards(rewards),
        notes=notes,
    )


def build_rewards(names: str) -> dict[str, Reward]:
    """Build the rewards of --rewards, each a choice of conf/reward with its settings."""
    # not at the commas of a list such as urls=[http://a:8000,http://b:8000]
    parts = [name.strip() for name in re.split(r",(?![^\[{]*[]}])", names)]
    require(all(parts), f"--rewards={names} lacks a name at a comma; such as pickscore,statistics")
    return {name: reading.build_reward(name) for name in parts}


def explain_rewards(rewards: Mapping[str, Reward]) -> dict[str, str]:
    """Return what the scores of rewards mean, also of those that a reward adds up or asks."""
    meanings: dict[str, str] = {}
    for reward in rewards.values():
        meanings |= explain_rewards(getattr(reward, "rewards", {}))
        if served := getattr(reward, "served", None):
            meanings |= explain_rewards({"served": served})
        meanings |= fill_meanings(getattr(reward, "meanings", {}), vars(reward))
    return meanings


def find_accepted(rewards: Mapping[str, Reward], prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    """Return the rows of the prompts that each reward accepts; raises ConfigError without any."""
    require(bool(rewards), "--rewards=NAME,... must be given; such as pickscore,statistics")
    filters = {name: make_filter(f"--rewards={name}", rewards[name]) for name in rewards}
    rows = {
        name: [row for row, prompt in enumerate(prompts) if accepts(prompt)]
        for name, accepts in filters.items()
    }
    require(
        any(rows.values()),
        f"none of the prompts suits {', '.join(rewards)}; give other prompts or other --rewards",
    )
    return rows


def score_pictures(
    name: str,
    scorer: Scorer,
    rows: Sequence[int],
    pictures: drawing.PicturesByModel,
    prompts: Sequence[Prompt],
    device: torch.device,
) -> RewardScores:
    """Score the pictures whose prompts a reward accepts."""
    accepted = [prompts[row] for row in rows]
    with explain_shortage(device, "scoring"):
        by_model = {
            model: scorer(images[rows].to(device), accepted) for model, images in pictures.items()
        }

    def fill_rows(values: Tensor) -> Float[ndarray, " N"]:
        filled = np.full(len(prompts), np.nan)
        filled[rows] = values.double().cpu()
        return filled

    parts = next(iter(by_model.values())).parts
    scores = [
        Score(
            reward=name,
            part=part,
            accepted=len(rows),
            values={model: fill_rows(result.parts[part]) for model, result in by_model.items()},
        )
        for part in parts
    ]
    # a reward without notes has an empty tuple instead of one note per picture
    notes = {
        model: dict(zip(rows, result.notes, strict=False)) for model, result in by_model.items()
    }
    return RewardScores(scores=scores, notes=notes)


def score_nothing(name: str, models: Sequence[str], count: int) -> RewardScores:
    """Return the empty score of a reward that accepts none of the prompts; the table names it."""
    values = dict.fromkeys(models, np.full(count, np.nan))
    return RewardScores(scores=[Score(reward=name, part="", accepted=0, values=values)], notes={})


def collect_notes(
    results: Mapping[str, RewardScores], model: str, count: int
) -> list[dict[str, Sequence[str]]]:
    """Return the notes of all rewards on every picture of a model."""
    by_reward = {name: result.notes.get(model, {}) for name, result in results.items()}
    return [
        {name: notes[row] for name, notes in by_reward.items() if notes.get(row)}
        for row in range(count)
    ]


def make_strip(
    label: str, images: Float[Tensor, "N 3 H W"], notes: Sequence[Mapping[str, Sequence[str]]]
) -> Strip:
    """Return the pictures of a model that the page shows."""
    tiles = drawing.make_tiles(images[: evaluation.PICTURES_ON_PAGE])
    return Strip(label=label, tiles=tiles, notes=[join_notes(n) for n in notes[: len(tiles)]])


def write_report(out: Path, report: EvaluationReport) -> Path:
    """Write the scores and the page, and return the path of the page."""
    with cli.report_unwritable(out):
        text = json.dumps(evaluation.to_json(report), indent=1, allow_nan=False)
        (out / "evaluation.json").write_text(text + "\n", encoding="utf-8")
        page = evaluation.render_evaluation(report)
        write_html(out / "index.html", page)
    return out / "index.html"


def build_score_table(report: EvaluationReport) -> Table:
    """Return a table with one row per score."""
    table = Table(title=report.title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for index, name in enumerate(evaluation.column_names(report)):
        table.add_column(name, no_wrap=index > 0, overflow="fold")
    for cells in evaluation.table_rows(report):
        table.add_row(*cells)
    return table
