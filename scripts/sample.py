"""Draw a run's checkpoint: python scripts/sample.py RUN [--prompts FILE | --prompt TEXT ...] [--help]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torchvision.utils import save_image

import cli
from grpo_guard import rng
from grpo_guard.backbone import Model
from grpo_guard.report import samples
from grpo_guard.rollout import rollout
from grpo_guard.sde import schedule
from grpo_guard.sde.ode import Ode
from grpo_guard.tail.euler import Euler
from grpo_guard.train import Experiment
from grpo_guard.types import Batch, ConfigError, Prompt, each, require

EPILOG = """\
examples:
  python scripts/sample.py runs/tiny_ab/guard
  python scripts/sample.py runs/tiny_ab/guard --checkpoint 20 --prompt 'a red circle' --prompt 'the word "stop"'
  python scripts/sample.py runs/tiny_ab/guard --prompts prompts.txt --each 4 --out drawn

Every prompt is drawn by the model as it was loaded and by the checkpoint, from the same noise, with the run's guidance
and resolution. Pictures lie in base/ and tuned/ of the output folder, side by side in grid.png, whose path is printed
last. Exit status: 0, or 2 where something given cannot be used."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Load, draw, show."""
    given = parser().parse_args(arguments)
    try:
        print(drawn(given))
    except cli.MISTAKES as error:
        print(f"error: {cli.explain(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        description="Draw prompts with a run's checkpoint, the base model beside it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    found.add_argument("--checkpoint", type=int, metavar="N", help="after N iterations (default: the last)")
    found.add_argument("--prompt", action="append", metavar="TEXT", help="a prompt; may be repeated")
    found.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt per line (default: the run's own)")
    found.add_argument("--each", type=int, default=1, metavar="K", help="pictures of each prompt (default: 1)")
    found.add_argument("--steps", type=int, default=40, help="ODE steps (default: 40)")
    found.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    found.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    found.add_argument("--out", type=Path, metavar="DIR", help="where to draw (default: drawn/ in the run folder)")
    return found


def drawn(given: argparse.Namespace) -> Path:
    """The grid's path, after everything has been drawn."""
    require(given.each > 0 and given.steps > 0, f"--each={given.each} and --steps={given.steps} must be positive")
    folder, exp = checkpoint(given.run, given.checkpoint), cli.load(given.run)
    texts = [text for text in prompts(given, exp) for _ in range(given.each)]
    out = given.out or given.run / "drawn"
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if given.device == "auto" else given.device)
    torch.manual_seed(rng.key(exp.seed, "initialisation"))
    model = exp.backbone.load(device)
    found = {"base": pictures(model, texts, given, exp.microbatch, "base")}
    model.restore(folder)
    found["tuned"] = pictures(model, texts, given, exp.microbatch, "tuned")
    return kept(out, found, texts, int(folder.name))


def checkpoint(run: Path, iterations: int | None) -> Path:
    """A checkpoint's folder; raises ConfigError where there is none."""
    found = {int(path.name): path for path in sorted((run / "checkpoints").glob("[0-9]*")) if path.suffix == ""}
    require(bool(found), f"{run} has no checkpoint; give a run folder that has checkpoints/")
    last = max(found) if iterations is None else iterations
    require(last in found, f"--checkpoint={last} is not there; choose from {sorted(found)}")
    return found[last]


def prompts(given: argparse.Namespace, exp: Experiment) -> list[str]:
    """What to draw: as given, or the captions of the run's own samples."""
    if given.prompt:
        return list(given.prompt)
    file = given.prompts or given.run / "samples" / "captions.txt"
    try:
        texts = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts={file} cannot be read ({error}); give a UTF-8 file of prompts") from error
    require(bool(texts), f"--prompts={file} holds no prompt; give one per line")
    return texts


@torch.no_grad()
def pictures(
    model: Model, texts: Sequence[str], given: argparse.Namespace, microbatch: int, name: str
) -> Float[Tensor, "N 3 H W"]:
    """One ODE sample of each text, each from its own noise."""
    plan = each(schedule(Ode(), model.times(given.steps)), lambda x: x.to(next(model.policy.parameters()).device))
    found = []
    for rows in track(torch.arange(len(texts)).split(microbatch), name, console=Console(stderr=True)):
        here = [texts[row] for row in rows.tolist()]
        batch = Batch(prompts=tuple(Prompt(text=text) for text in here), group=torch.arange(len(here)), sample=rows)
        batch, condition = each(batch, lambda x: x.to(plan.t.device)), model.encode(here)
        path = rollout(
            model.policy, plan, batch, condition, model.shape,
            address=(given.seed, 0), microbatch=microbatch, tail=Euler(),
        )  # fmt: skip
        found.append(model.decode(path.sample).cpu())
    return torch.cat(found)


def kept(out: Path, found: dict[str, Float[Tensor, "N 3 H W"]], texts: Sequence[str], iterations: int) -> Path:
    """Write every picture and the grid."""
    strips = []
    for name, images in found.items():
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for row, image in enumerate(images):
            save_image(image, folder / f"{row:04d}.png")
        label = "base" if name == "base" else f"iteration {iterations}"
        strips.append(samples.Strip(label=label, tiles=(images.movedim(1, 3) * 255).round().byte().numpy()))
    samples.sheet(strips, texts).savefig(out / "grid.png", dpi=150)
    return out / "grid.png"


if __name__ == "__main__":
    main()
