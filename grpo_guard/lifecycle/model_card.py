"""The model card of a checkpoint: what it was trained on and how, what was measured, and how to load it."""

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
"""The settings that a reader looks for first; all are in the card's last section."""

PICTURE = """\
import torch
from diffusers import DiffusionPipeline
{imported}
pipe = DiffusionPipeline.from_pretrained({model}, dtype=torch.{dtype}{absent})
{weights}
image = pipe("a red circle", height={size}, width={size}{call}).images[0]"""
LORA = """pipe.load_lora_weights("lora")"""
FULL = """pipe.transformer = type(pipe.transformer).from_pretrained("transformer", dtype=torch.{dtype})"""


def write(file: Path, config: Mapping[str, Any], metrics: Path, iterations: int) -> None:
    """Write the card of a checkpoint after some iterations; `metrics` is the run's metrics.jsonl, if there is one."""
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    file.write_text(
        card(config, [json.loads(line) for line in lines], iterations), encoding="utf-8"
    )


def card(config: Mapping[str, Any], rows: Sequence[Mapping[str, float]], iterations: int) -> str:
    """Markdown, headed as the hub reads it."""
    model = _setting(config, "backbone.model") or "unknown"
    head = {
        "base_model": model,
        "library_name": "diffusers",
        "tags": ["text-to-image", "grpo_guard", "grpo"],
    }
    told = [(key, _setting(config, key)) for key in RECIPE]
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(head)}---\n",
            f"# {Path(str(model)).name}, fine-tuned by grpo_guard\n",
            f"{iterations} iterations of reinforcement learning. Load it in diffusers, from this folder:\n",
            f"```python\n{_loading(config)}\n```\n",
            "## Recipe\n",
            *_table(
                ("setting", "value"), [(key, value) for key, value in told if value is not None]
            ),
            "\n## Measured\n",
            *_measured(rows),
            f"\n## Configuration\n\n```yaml\n{yaml.safe_dump(dict(config), sort_keys=False)}```\n",
        ]
    )


def _loading(config: Mapping[str, Any]) -> str:
    """The code that draws a picture as the run's evaluations do."""
    model, tokens = str(_setting(config, "backbone.model")), _setting(config, "backbone.t5_tokens")
    shipped = Path(__file__).parents[1].joinpath("assets", model).is_dir()
    dtype = _setting(config, "backbone.dtype")
    return PICTURE.format(
        dtype=dtype,
        imported="from grpo_guard.assets import locate\n" if shipped else "",
        model=f'locate("model", "{model}")' if shipped else f'"{model}"',
        absent=", text_encoder_3=None, tokenizer_3=None" if tokens == 0 else "",
        weights=LORA if _setting(config, "backbone.lora") else FULL.format(dtype=dtype),
        size=_setting(config, "backbone.resolution"),
        call=_call(config),
    )


def _call(config: Mapping[str, Any]) -> str:
    """What the family of the run's backbone gives its pipeline beside the prompt and the size."""
    family: Any = pydoc.locate(str(_setting(config, "backbone._target_")))
    return f", {family.call.format_map(config['backbone'])}" if family else ""


def _measured(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """The first and the last evaluation."""
    found = [row for row in rows if any(key.startswith("eval/") for key in row)]
    if not found:
        return ["Nothing was evaluated."]
    keys = sorted(key for key in found[-1] if key.startswith("eval/"))
    title = (
        "held-out prompts",
        *(f"iteration {row['iteration']:g}" for row in (found[0], found[-1])),
    )
    return _table(
        title,
        [
            (key, *(f"{row.get(key, float('nan')):.4g}" for row in (found[0], found[-1])))
            for key in keys
        ],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    return [_line(head), _line(["---"] * len(head)), *map(_line, rows)]


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _setting(config: Mapping[str, Any], key: str) -> Any:
    """A dotted key of the configuration, None where there is none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
