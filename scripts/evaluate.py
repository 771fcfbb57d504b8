"""Judge a checkpoint, or a folder of pictures, by rewards: python scripts/evaluate.py RUN|PICTURES [--help]"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from grpo_guard.data import geneval, pick_prompts
from grpo_guard.data.prompts import parse_plain
from grpo_guard.eval.heldout import HeldOut
from grpo_guard.experiment import Experiment
from grpo_guard.report import evaluation
from grpo_guard.report.evaluation import Evaluation, Score
from grpo_guard.report.samples import Strip
from grpo_guard.reward import Reward, Scorer
from grpo_guard.schema import record, require
from grpo_guard.types import Prompt
from lib import cli, drawing, reading

EPILOG = """\
examples:
  python scripts/evaluate.py runs/tiny_ab/guard
  python scripts/evaluate.py runs/tiny_ab/guard --checkpoint best --count 192 --rewards world,pickscore_gold,ocr
  python scripts/evaluate.py runs/tiny_ab/guard --prompts prompts.txt --each 8 --rewards 'geneval strict=true,diversity'
  python scripts/evaluate.py pictures --prompts prompts.jsonl --rewards geneval_coco,statistics

Of a run, every prompt is drawn by the model as it was loaded and by the checkpoint, from the same noise, with the run's
guidance and resolution; prompts and noise depend on --seed alone. PICTURES is a folder of png, jpg and webp files, in
the order of their names: as many of the first prompt as of every other, one after another. A line of a file of prompts
is GenEval's JSON, a caption of the synthetic world, or any other text. A reward is a choice of conf/reward with its
settings, and scores the prompts that it accepts.

The table shows mean, standard error and n, and what the checkpoint has gained on the same prompts and noise. The output
folder holds the pictures of a run, index.html, which needs no other file, and evaluation.json with the scores of every
picture. Exit status: 0, or 2 where something given cannot be used."""

HELDOUT = "heldout"
COUNT = 64  # of held-out prompts


@record
class Material:
    """Prompts, and how to have the pictures of them that each model has drawn, or draws now into a folder.

    `rewards` judge if no others are named; `labels` name the models on the page, `files` the pictures.
    """

    prompts: Sequence[Prompt]
    pictures: Callable[[Path], drawing.Pictures]
    rewards: Mapping[str, Reward]
    labels: Mapping[str, str]
    files: Mapping[str, Sequence[str]]
    about: Mapping[str, Any]


@record
class Judgement:
    """What one reward says: scores, and notes by model and row of the picture."""

    scores: Sequence[Score]
    notes: Mapping[str, Mapping[int, Sequence[str]]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, judge, show."""
    given = parser().parse_args(arguments)
    cli.hide_progress_bars()
    with cli.exit_on_mistake():
        found, page = evaluated(given)
    Console().print(table(found))
    print(page)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = "What rewards say of a run's checkpoint, the base model beside it, or of a folder of pictures."
    found = cli.make_parser(words, EPILOG)
    found.add_argument(
        "source", type=Path, metavar="RUN|PICTURES", help="a run folder, or a folder of pictures"
    )
    found.add_argument(
        "--prompts",
        default=HELDOUT,
        metavar="FILE",
        help="one per line (default: the run's held-out)",
    )
    found.add_argument(
        "--rewards",
        metavar="NAME,...",
        help="choices of conf/reward (default: the run's proxy and golds)",
    )
    drawing.device_option(found)
    found.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where to write (default: evaluation/ in RUN|PICTURES)",
    )
    of_runs = drawing.options(found)
    of_runs.add_argument(
        "--count", type=int, metavar="N", help="prompts (default: 64 held-out ones, or all of FILE)"
    )
    return found


def evaluated(given: argparse.Namespace) -> tuple[Evaluation, Path]:
    """Everything that was found, and the path of its page."""
    material, where = gathered(given), drawing.device(given.device)
    out = given.out or given.source / "evaluation"
    with cli.report_unwritable(out):
        out.mkdir(parents=True, exist_ok=True)
    judges = chosen(given.rewards) if given.rewards else material.rewards
    accepted = {
        name: [i for i, p in enumerate(material.prompts) if r.accepts(p)]
        for name, r in judges.items()
    }
    require(bool(judges), "--rewards=NAME,... must be given; such as pickscore,statistics")
    require(
        any(accepted.values()),
        f"none of the prompts suits {', '.join(judges)}; give others, or other --rewards",
    )
    scorers = {name: judges[name].load(where) for name, rows in accepted.items() if rows}
    pictures = material.pictures(out)
    said = {
        name: judged(name, scorers.get(name), rows, pictures, material.prompts, where)
        for name, rows in track(accepted.items(), "scoring", console=Console(stderr=True))
    }
    notes = {model: told(said, model, len(material.prompts)) for model in pictures}
    found = Evaluation(
        title=f"Evaluation: {given.source.resolve().name}",
        about=material.about,
        prompts=material.prompts,
        files=material.files,
        strips=[
            strip(material.labels[name], images, notes[name]) for name, images in pictures.items()
        ],
        scores=[score for judgement in said.values() for score in judgement.scores],
        notes=notes,
    )
    return found, write(out, found)


def gathered(given: argparse.Namespace) -> Material:
    """What is to be judged."""
    is_run = any((given.source / name).exists() for name in ("config.yaml", "checkpoints"))
    return of_run(given) if is_run else of_folder(given)


def of_run(given: argparse.Namespace) -> Material:
    """Prompts to be drawn by a run's checkpoint, and by the model it began with."""
    settings = drawing.Settings(**drawing.told(given))
    require(given.count is None or given.count > 0, f"--count={given.count} is not positive")
    folder, exp = drawing.checkpoint(given.source, settings.checkpoint), cli.load(given.source)
    found = asked(given.prompts, exp, given.count, settings.seed)
    prompts = [prompt for prompt in found for _ in range(settings.each)]

    def draw_all(out: Path) -> drawing.Pictures:
        texts, where = [prompt.text for prompt in prompts], drawing.device(given.device)
        found = drawing.base_and_tuned(exp, folder, texts, where, settings.steps, settings.seed)
        with cli.report_unwritable(out):
            drawing.keep(out, found)
        return found

    golds = exp.eval.gold if isinstance(exp.eval, HeldOut) else {}
    return Material(
        prompts=prompts,
        pictures=draw_all,
        rewards={"proxy": exp.reward, **golds},
        labels={"base": "base", "tuned": drawing.label(folder)},
        files={
            name: [f"{name}/{drawing.file(row)}" for row in range(len(prompts))]
            for name in ("base", "tuned")
        },
        about={
            "run": str(given.source),
            "checkpoint": drawing.label(folder),
            "prompts": str(given.prompts),
            "steps": settings.steps,
            "seed": settings.seed,
        },
    )


def asked(file: str, exp: Experiment, count: int | None, seed: int) -> Sequence[Prompt]:
    """The prompts of a file, or some that were held out of a run's training."""
    if file != HELDOUT:
        return read(Path(file))[:count]
    split = exp.split()
    return pick_prompts(split.heldout, split.in_turn, range(count or COUNT), seed, "evaluate")


def of_folder(given: argparse.Namespace) -> Material:
    """Pictures as they lie there."""
    require(
        given.source.is_dir(),
        f"RUN|PICTURES={given.source} is no folder; give a run's, or one of pictures",
    )
    idle = [f"--{key}" for key in drawing.told(given)] + ["--count"] * (given.count is not None)
    require(
        not idle,
        f"{', '.join(idle)} can only be given with a run folder, which {given.source} is not",
    )
    require(
        given.prompts != HELDOUT,
        f"--prompts=FILE must be given: what the pictures in {given.source} are to show",
    )
    pairs = reading.pair_pictures(given.source, read(Path(given.prompts)))
    return Material(
        prompts=[prompt for _, prompt in pairs],
        pictures=lambda _: {"pictures": stacked([path for path, _ in pairs])},
        rewards={},
        labels={"pictures": "pictures"},
        files={"pictures": [str(path) for path, _ in pairs]},
        about={"pictures": str(given.source), "prompts": str(given.prompts)},
    )


def read(file: Path) -> list[Prompt]:
    """The prompts of a file: GenEval's, or lines that are all prompt."""
    return reading.read_prompts(
        "--prompts", file, lambda line: (geneval.parse_geneval if line.startswith("{") else parse_plain)(line)
    )


def stacked(paths: Sequence[Path]) -> Float[Tensor, "N 3 H W"]:
    """Pictures of one size."""
    images = [
        reading.open_image(path) for path in track(paths, "reading", console=Console(stderr=True))
    ]
    sizes = {tuple(image.shape[2:]) for image in images}
    require(
        len(sizes) == 1, f"PICTURES={paths[0].parent} are of {len(sizes)} sizes; make them of one"
    )
    return torch.cat(images)


def chosen(names: str) -> dict[str, Reward]:
    """Choices of conf/reward with their settings."""
    return {name.strip(): reading.build_reward(name) for name in names.split(",")}


def judged(
    name: str,
    scorer: Scorer | None,
    rows: Sequence[int],
    pictures: drawing.Pictures,
    prompts: Sequence[Prompt],
    where: torch.device,
) -> Judgement:
    """What one reward says of the pictures whose prompts it accepts; without a scorer, that there are none."""
    nothing = np.full(len(prompts), np.nan)
    if scorer is None:
        none = Score(reward=name, part="", accepted=0, values=dict.fromkeys(pictures, nothing))
        return Judgement(scores=[none], notes={})
    here = [prompts[row] for row in rows]
    said = {model: scorer(images[rows].to(where), here) for model, images in pictures.items()}

    def whole(values: Tensor) -> Float[ndarray, " N"]:
        found = nothing.copy()
        found[rows] = values.double().cpu()
        return found

    return Judgement(
        scores=[
            Score(
                reward=name,
                part=part,
                accepted=len(rows),
                values={model: whole(found.parts[part]) for model, found in said.items()},
            )
            for part in next(iter(said.values())).parts
        ],
        notes={model: dict(zip(rows, found.notes, strict=False)) for model, found in said.items()},
    )


def told(said: Mapping[str, Judgement], model: str, count: int) -> list[dict[str, Sequence[str]]]:
    """The notes of all rewards on every picture of a model."""
    known = {name: judgement.notes.get(model, {}) for name, judgement in said.items()}
    return [
        {name: notes[row] for name, notes in known.items() if notes.get(row)}
        for row in range(count)
    ]


def strip(
    label: str, images: Float[Tensor, "N 3 H W"], notes: Sequence[Mapping[str, Sequence[str]]]
) -> Strip:
    """Those of the pictures that the page shows."""
    tiles = drawing.tiles(images[: evaluation.SHOWN])
    return Strip(
        label=label, tiles=tiles, notes=[evaluation.joined(lines) for lines in notes[: len(tiles)]]
    )


def write(out: Path, found: Evaluation) -> Path:
    """Write the scores and the page, return the page's path."""
    with cli.report_unwritable(out):
        text = json.dumps(evaluation.described(found), indent=1, allow_nan=False)
        (out / "evaluation.json").write_text(text + "\n", encoding="utf-8")
        (out / "index.html").write_text(evaluation.page(found), encoding="utf-8")
    return out / "index.html"


def table(found: Evaluation) -> Table:
    """A row per score."""
    shown = Table(title=found.title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for index, name in enumerate(evaluation.head(found)):
        shown.add_column(name, no_wrap=index > 0, overflow="fold")
    for cells in evaluation.rows(found):
        shown.add_row(*cells)
    return shown


if __name__ == "__main__":
    main()
