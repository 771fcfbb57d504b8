"""Compare two GenEval rewards: python scripts/calibrate_geneval.py PICTURES PROMPTS REWARD REWARD [--help]"""

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

from grpo_guard.data import geneval
from grpo_guard.reward.geneval import GenEval, Look, accuracy, explain, graded, strict
from grpo_guard.types import Prompt, record, require
from lib import cli, drawing, reading

EPILOG = """\
examples:
  python scripts/calibrate_geneval.py pictures prompts.jsonl geneval_coco 'geneval_coco detector.side=null'
  python scripts/calibrate_geneval.py pictures prompts.jsonl geneval_coco 'geneval_coco detector.model=other' --out seen
  python scripts/calibrate_geneval.py RUN/drawn/tuned RUN/samples/captions.txt geneval 'geneval counting=0.9'

PICTURES is a folder of png, jpg and webp files, taken in the order of their names: as many of the first prompt as of
every other, one after another. A line of PROMPTS is GenEval's JSON, or a caption of the synthetic world. A REWARD is a
choice of conf/reward that has a detector, with its settings in the same quotes. A prompt that either cannot judge is
left out. For every tag and for the training reward, the benchmark's accuracy and the strict one, the table shows the
mean by either REWARD and the share of pictures on which the two say the same.

--out writes a line of JSON per picture: what each reward gives, and of every demand of the prompt how far it is met,
what was seen and what is missing. Exit status: 0, or 2 where something given cannot be used."""

MEASURES = {"graded": graded, "accuracy": accuracy, "strict": strict}

Verdict = Mapping[str, Any]
"""Values of `MEASURES`, and `demands`: a line for each demand."""


@record
class Sample:
    """A picture, its prompt, and what the two rewards say of it."""

    picture: Path
    prompt: Prompt
    verdicts: tuple[Verdict, Verdict]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, look twice, compare."""
    given = parser().parse_args(arguments)
    cli.still()
    with cli.refusing():
        samples = seen(given)
        if given.out:
            write(given.out, given.rewards, samples)
    Console().print(table(given.rewards, samples))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = cli.parser(
        "How far two of GenEval's detectors agree about pictures, tag by tag.", EPILOG
    )
    found.add_argument("pictures", type=Path, metavar="PICTURES", help="a folder of pictures")
    found.add_argument(
        "prompts", type=Path, metavar="PROMPTS", help="a file of their prompts, one per line"
    )
    found.add_argument(
        "rewards",
        nargs=2,
        metavar="REWARD",
        help="such as geneval_coco, or 'geneval_coco KEY=VALUE'",
    )
    drawing.device_option(found)
    found.add_argument(
        "--out", type=Path, metavar="FILE", help="where to write what was seen (default: nowhere)"
    )
    return found


def seen(given: argparse.Namespace) -> list[Sample]:
    """Every picture whose prompt both rewards can judge, as both see it."""
    rewards, device = [reward(text) for text in given.rewards], drawing.device(given.device)
    whole = reading.paired(given.pictures, reading.prompts("PROMPTS", given.prompts, geneval.parse))
    pairs = [pair for pair in whole if all(r.accepts(pair[1]) for r in rewards)]
    both = " and ".join(given.rewards)
    require(
        bool(pairs),
        f"PROMPTS={given.prompts} holds none that {both} can judge; give prompts about objects",
    )
    first, second = (r.look(device) for r in rewards)
    samples = []
    for path, prompt in track(pairs, "looking", console=Console(stderr=True)):
        image = reading.opened(path).to(device)
        verdicts = verdict(first, image, prompt), verdict(second, image, prompt)
        samples.append(Sample(picture=path, prompt=prompt, verdicts=verdicts))
    return samples


def reward(text: str) -> GenEval:
    """The reward of a choice and its settings, such as "geneval strict=true"."""
    made = reading.reward(text)
    require(
        isinstance(made, GenEval),
        f"REWARD={text} looks for no objects; give such as geneval or geneval_coco",
    )
    return made


def verdict(look: Look, image: Float[Tensor, "1 3 H W"], prompt: Prompt) -> Verdict:
    """What a reward says of one picture."""
    things = look(image, [prompt])[0]
    return {name: value(prompt, things) for name, value in MEASURES.items()} | {
        "demands": explain(prompt, things)
    }


def table(rewards: Sequence[str], samples: Sequence[Sample]) -> Table:
    """A line per tag, and one for all."""
    measures = [f"{name}\nA    B    same" for name in MEASURES]
    shown = Table("tag", "pictures", *measures, title=f"A: {rewards[0]}\nB: {rewards[1]}")
    for tag in sorted({sample.prompt.tag for sample in samples}):
        shown.add_row(
            tag or "(none)", *row([sample for sample in samples if sample.prompt.tag == tag])
        )
    shown.add_section()
    shown.add_row("all", *row(samples))
    return shown


def row(samples: Sequence[Sample]) -> list[str]:
    """How many pictures; then, for each measure, both means and the share of pictures on which they agree."""
    return [
        str(len(samples)),
        *(compared([said(sample, name) for sample in samples]) for name in MEASURES),
    ]


def said(sample: Sample, name: str) -> tuple[float, float]:
    """A measure by both rewards."""
    first, second = sample.verdicts
    return first[name], second[name]


def compared(pairs: Sequence[tuple[float, float]]) -> str:
    """Both means, and the share of pairs that are equal."""
    first, second = zip(*pairs, strict=True)
    return f"{mean(first):.2f} {mean(second):.2f} {mean(a == b for a, b in pairs):.2f}"


def described(rewards: Sequence[str], sample: Sample) -> dict[str, Any]:
    """What --out keeps of a picture."""
    known = {"picture": str(sample.picture), "tag": sample.prompt.tag, "prompt": sample.prompt.text}
    first, second = (
        {"reward": name, **verdict} for name, verdict in zip(rewards, sample.verdicts, strict=True)
    )
    return known | {"A": first, "B": second}


def write(file: Path, rewards: Sequence[str], samples: Sequence[Sample]) -> None:
    """A line of JSON per picture."""
    lines = [json.dumps(described(rewards, sample)) for sample in samples]
    with cli.writing(file):
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
