"""What scripts/calibrate_geneval.py does once its arguments are parsed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from grpo_guard.console import cli, drawing, reading
from grpo_guard.data import geneval
from grpo_guard.reward.geneval import MEASURES, DetectForPrompts, GenEval, explain_demands
from grpo_guard.schema import ConfigError, record, require
from grpo_guard.types import Prompt

Measures = Mapping[str, Any]
"""The values of `MEASURES` for a picture, and `demands`: a line of text per demand."""


@record
class Sample:
    """A picture with its prompt and its measures by both rewards."""

    picture: Path
    """File of the picture."""
    prompt: Prompt
    """Prompt of the picture."""
    measures: tuple[Measures, Measures]
    """Measures by the first and the second reward."""


def measure_and_print(args: argparse.Namespace) -> None:
    """Measure the pictures with both rewards, print the table, and write --out."""
    cli.hide_progress_bars()
    if args.out:
        # A file that cannot be written is refused before the work.
        with cli.report_unwritable(args.out):
            args.out.open("a").close()
    samples = measure_pictures(args)
    if args.out:
        write_samples(args.out, args.rewards, samples)
    Console().print(build_table(args.rewards, samples))


def measure_pictures(args: argparse.Namespace) -> list[Sample]:
    """Measure every picture whose prompt both rewards accept, with both of them."""
    rewards = [build_geneval(text) for text in args.rewards]
    device = drawing.choose_device(args.device)
    prompts = reading.read_prompts("PROMPTS", args.prompts, geneval.parse_geneval)
    pairs = [
        (path, prompt)
        for path, prompt in reading.pair_pictures(args.pictures, prompts)
        if all(reward.accepts(prompt) for reward in rewards)
    ]
    require(
        bool(pairs),
        f"PROMPTS={args.prompts} holds no prompt that {' and '.join(args.rewards)} can judge;"
        " give prompts about objects",
    )
    first, second = (reward.load_detection(device) for reward in rewards)
    samples = []
    for path, prompt in track(pairs, "looking", console=Console(stderr=True)):
        image = reading.open_image(path).to(device)
        measures = (measure_picture(first, image, prompt), measure_picture(second, image, prompt))
        samples.append(Sample(picture=path, prompt=prompt, measures=measures))
    return samples


def build_geneval(text: str) -> GenEval:
    """Build the reward of a choice and its settings, such as "geneval measure=strict"."""
    reward = reading.build_reward(text)
    if not isinstance(reward, GenEval):
        raise ConfigError(
            f"REWARD={text} has no detector; give geneval, geneval_coco or one like them"
        )
    return reward


def measure_picture(
    detect: DetectForPrompts, image: Float[Tensor, "1 3 H W"], prompt: Prompt
) -> Measures:
    """Return the measures of one picture and the lines about its demands."""
    objects = detect(image, [prompt])[0]
    values = {name: measure(prompt, objects) for name, measure in MEASURES.items()}
    return values | {"demands": explain_demands(prompt, objects)}


def build_table(rewards: Sequence[str], samples: Sequence[Sample]) -> Table:
    """Return a table with a row per tag and a last row for all pictures."""
    measures = [f"{name}\nA    B    same" for name in MEASURES]
    table = Table("tag", "pictures", *measures, title=f"A: {rewards[0]}\nB: {rewards[1]}")
    for tag in sorted({sample.prompt.tag for sample in samples}):
        tagged = [sample for sample in samples if sample.prompt.tag == tag]
        table.add_row(tag or "(none)", *summarize(tagged))
    table.add_section()
    table.add_row("all", *summarize(samples))
    return table


def summarize(samples: Sequence[Sample]) -> list[str]:
    """Return the cells of a row: the number of pictures, then a comparison per measure."""
    cells = [str(len(samples))]
    for name in MEASURES:
        first = [sample.measures[0][name] for sample in samples]
        second = [sample.measures[1][name] for sample in samples]
        agreement = mean(a == b for a, b in zip(first, second, strict=True))
        cells.append(f"{mean(first):.2f} {mean(second):.2f} {agreement:.2f}")
    return cells


def describe_sample(rewards: Sequence[str], sample: Sample) -> dict[str, Any]:
    """Return what --out writes of a picture."""
    first, second = sample.measures
    return {
        "picture": str(sample.picture),
        "tag": sample.prompt.tag,
        "prompt": sample.prompt.text,
        "A": {"reward": rewards[0], **first},
        "B": {"reward": rewards[1], **second},
    }


def write_samples(file: Path, rewards: Sequence[str], samples: Sequence[Sample]) -> None:
    """Write one line of JSON per picture."""
    lines = [json.dumps(describe_sample(rewards, sample)) for sample in samples]
    with cli.report_unwritable(file):
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
