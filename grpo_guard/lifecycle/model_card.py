"""The model card of a checkpoint: how it was trained, what was measured, and how to load it."""

from __future__ import annotations

import json
import pydoc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

RECIPE = (
    "backbone.model",
    "backbone.resolution",
    "backbone.guidance",
    "backbone.dtype",
    "backbone.lora.rank",
    "backbone.lora.alpha",
    "steps",
    "sde._target_",
    "sde.level",
    "reward._target_",
    "clipping.ratio._target_",
    "clipping.weight._target_",
    "clipping.high",
    "clipping.low",
    "kl._target_",
    "kl.beta",
    "advantage.std",
    "data.prompts",
    "data.repeats",
    "updates",
    "optim.lr",
    "ema._target_",
    "seed",
)
"""The settings that a reader looks for first; the card's last section has all of them."""

DRAWING_CODE = """\
import torch
from diffusers import DiffusionPipeline
{imported}
pipe = DiffusionPipeline.from_pretrained({model}, dtype=torch.{dtype}{absent})
{weights}
image = pipe("a red circle", height={size}, width={size}{call}).images[0]"""
LORA_CODE = """pipe.load_lora_weights("lora")"""
FULL_CODE = """\
pipe.transformer = type(pipe.transformer).from_pretrained("transformer", dtype=torch.{dtype})"""


def write_card(file: Path, config: Mapping[str, Any], metrics: Path, iterations: int) -> None:
    """Write the card of a checkpoint after some iterations.

    `config` is the composed configuration; `metrics` is the run's metrics.jsonl, which need not
    exist.
    """
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    rows = [json.loads(line) for line in lines]
    file.write_text(make_card(config, rows, iterations), encoding="utf-8")


def make_card(
    config: Mapping[str, Any], rows: Sequence[Mapping[str, float]], iterations: int
) -> str:
    """Return the card as Markdown, with the header that the hub reads."""
    model = _setting(config, "backbone.model") or "unknown"
    header = {
        "base_model": model,
        "library_name": "diffusers",
        "tags": ["text-to-image", "grpo_guard", "grpo"],
    }
    settings = [(key, _setting(config, key)) for key in RECIPE]
    sections = [
        f"---\n{yaml.safe_dump(header)}---\n",
        f"# {Path(str(model)).name}, fine-tuned by grpo_guard\n",
        f"{iterations} iterations of reinforcement learning."
        " Load it in diffusers, from this folder:\n",
        f"```python\n{_drawing_code(config)}\n```\n",
        "## Recipe\n",
        *_table(("setting", "value"), [pair for pair in settings if pair[1] is not None]),
        "\n## Measured\n",
        *_evaluations(rows),
        f"\n## Configuration\n\n```yaml\n{yaml.safe_dump(dict(config), sort_keys=False)}```\n",
    ]
    return "\n".join(sections)


def _drawing_code(config: Mapping[str, Any]) -> str:
    """Return code that draws a picture as the run's evaluations do."""
    model = str(_setting(config, "backbone.model"))
    dtype = _setting(config, "backbone.dtype")
    shipped = Path(__file__).parents[1].joinpath("assets", model).is_dir()
    without_t5 = _setting(config, "backbone.t5_tokens") == 0
    with_lora = _setting(config, "backbone.lora")
    return DRAWING_CODE.format(
        dtype=dtype,
        imported="from grpo_guard.assets import locate\n" if shipped else "",
        model=f'locate("model", "{model}")' if shipped else f'"{model}"',
        absent=", text_encoder_3=None, tokenizer_3=None" if without_t5 else "",
        weights=LORA_CODE if with_lora else FULL_CODE.format(dtype=dtype),
        size=_setting(config, "backbone.resolution"),
        call=_pipeline_arguments(config),
    )


def _pipeline_arguments(config: Mapping[str, Any]) -> str:
    """Return what the backbone's family passes to its pipeline beside the prompt and the size."""
    family: Any = pydoc.locate(str(_setting(config, "backbone._target_")))
    return f", {family.call_arguments.format_map(config['backbone'])}" if family else ""


def _evaluations(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Return a table of the first and the last evaluation."""
    evaluations = [row for row in rows if any(key.startswith("eval/") for key in row)]
    if not evaluations:
        return ["Nothing was evaluated."]
    ends = (evaluations[0], evaluations[-1])
    header = ("held-out prompts", *(f"iteration {row['iteration']:g}" for row in ends))
    keys = sorted(key for key in ends[1] if key.startswith("eval/"))
    cells = [(key, *(f"{row.get(key, float('nan')):.4g}" for row in ends)) for key in keys]
    return _table(header, cells)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    return [_table_row(header), _table_row(["---"] * len(header)), *map(_table_row, rows)]


def _table_row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _setting(config: Mapping[str, Any], key: str) -> Any:
    """Return a dotted key of the configuration, None if there is none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
