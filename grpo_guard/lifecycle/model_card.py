"""The model card of a checkpoint: how it was trained, what was measured, and how to load it."""

from __future__ import annotations

import math
import os
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from grpo_guard.logger.folder import read_rows
from grpo_guard.metrics import Metrics

RECIPE = (
    "backbone.model",
    "backbone.resolution",
    "backbone.guidance",
    "backbone.dtype",
    "backbone.lora.rank",
    "backbone.lora.alpha",
    "backbone.init",
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

LICENSES = {
    "stabilityai/stable-diffusion-3.5-medium": "stabilityai-ai-community",
    "stabilityai/stable-diffusion-3.5-large": "stabilityai-ai-community",
    "black-forest-labs/FLUX.1-dev": "flux-1-dev-non-commercial-license",
    "black-forest-labs/FLUX.1-schnell": "apache-2.0",
    "Qwen/Qwen-Image": "apache-2.0",
}
"""The licence of a base model, which also holds for what is made from it."""
OPEN_LICENSE = "apache-2.0"
"""The licence of the models that ship with the package, and one that the hub knows by its name."""

DRAWING_CODE = """\
import torch
from diffusers import DiffusionPipeline
{imported}
pipe = DiffusionPipeline.from_pretrained({model}, dtype=torch.{dtype}{absent})
{weights}{move}
image = pipe("a red circle", height={size}, width={size}{call}).images[0]"""
LORA_CODE = """pipe.load_lora_weights("lora")"""
FULL_CODE = """\
pipe.transformer = type(pipe.transformer).from_pretrained("transformer", dtype=torch.{dtype})"""


def write_card(
    config: Mapping[str, Any], run: Path, folder: Path, iterations: int, evaluation: Metrics
) -> None:
    """Write or replace the card in the folder of a checkpoint after some iterations.

    `config` is the composed configuration. `run` is the run folder, whose metrics.jsonl may have
    the evaluation of the start. `evaluation` is that of the checkpoint's weights; empty: they were
    not evaluated.
    """
    start = _read_start(run)
    values = {key: metric.value for key, metric in evaluation.items()}
    card = make_card(config, iterations, _evaluation_scores(values), start)
    partial = folder / "README.partial"
    card.save(partial)
    os.replace(partial, folder / "README.md")


def make_card(
    config: Mapping[str, Any],
    iterations: int,
    scores: Mapping[str, float],
    start: Mapping[str, float],
) -> ModelCard:
    """Return the card: Markdown with the header that the hub reads.

    `scores` are the evaluation of the weights after these iterations, `start` that of the model
    before the first; both may be empty.
    """
    model = _setting(config, "backbone.model") or "unknown"
    settings = [(key, _setting(config, key)) for key in RECIPE]
    sections = [
        f"---\n{_make_header(config, scores).to_yaml()}\n---\n",
        f"# {Path(str(model)).name}, fine-tuned by grpo_guard\n",
        f"{iterations} iterations of reinforcement learning."
        " Load it in diffusers, from this folder:\n",
        f"```python\n{_drawing_code(config)}\n```\n",
        "## Recipe\n",
        *_table(("setting", "value"), [pair for pair in settings if pair[1] is not None]),
        "\n## Measured\n",
        *_describe_scores(iterations, scores, start),
        f"\n## Configuration\n\n```yaml\n{yaml.safe_dump(dict(config), sort_keys=False)}```\n",
    ]
    return ModelCard("\n".join(sections))


def _make_header(config: Mapping[str, Any], scores: Mapping[str, float]) -> ModelCardData:
    """Return the metadata that the hub reads. The base model is named if it is on the hub."""
    model = str(_setting(config, "backbone.model"))
    with_lora = _setting(config, "backbone.lora") is not None
    further: dict[str, Any] = _describe_license(model)
    # This is how `assets.locate` tells a hub id from a shipped model and from a folder.
    is_here = model.startswith((".", "/", "~")) or Path(model).is_dir()
    if model.count("/") == 1 and not is_here:
        further["base_model"] = model
        further["base_model_relation"] = "adapter" if with_lora else "finetune"
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["text-to-image", "grpo_guard", "grpo", *(["lora"] if with_lora else [])],
        model_name=f"{Path(model).name}-grpo_guard",
        eval_results=[_make_result(key, value) for key, value in sorted(scores.items())] or None,
        **further,
    )


def _describe_license(model: str) -> dict[str, str]:
    """Return what the hub says of the licence of a base model; nothing if it is not known."""
    name = OPEN_LICENSE if _is_shipped(model) else LICENSES.get(model)
    if name is None:
        return {}
    if name == OPEN_LICENSE:
        return {"license": name}
    return {
        "license": "other",
        "license_name": name,
        "license_link": f"https://huggingface.co/{model}/blob/main/LICENSE.md",
    }


def _is_shipped(model: str) -> bool:
    return Path(__file__).parents[1].joinpath("assets", model).is_dir()


def _make_result(key: str, value: float) -> EvalResult:
    """Return a score in the form of the hub's index of evaluations."""
    prompts = "training" if key.startswith("eval/train/") else "held-out"
    return EvalResult(
        task_type="text-to-image",
        dataset_type=f"{prompts}-prompts",
        dataset_name=f"{prompts} prompts",
        metric_type=key,
        metric_value=value,
    )


def _drawing_code(config: Mapping[str, Any]) -> str:
    """Return code that draws a picture as the run's evaluations do.

    In half precision the pictures agree to rounding only: the pipelines decode in the dtype that
    they draw in, the run in `backbone.vae_dtype`.
    """
    model = str(_setting(config, "backbone.model"))
    dtype = _setting(config, "backbone.dtype")
    shipped = _is_shipped(model)
    without_t5 = _setting(config, "backbone.t5_tokens") == 0
    with_lora = _setting(config, "backbone.lora")
    return DRAWING_CODE.format(
        dtype=dtype,
        imported="from grpo_guard.assets import locate\n" if shipped else "",
        model=f'locate("model", "{model}")' if shipped else f'"{model}"',
        absent=", text_encoder_3=None, tokenizer_3=None" if without_t5 else "",
        weights=LORA_CODE if with_lora else FULL_CODE.format(dtype=dtype),
        # Half precision is slow on a CPU, and some of its operations are missing there.
        move="" if dtype == "float32" else '\npipe.to("cuda")',
        size=_setting(config, "eval.resolution") or _setting(config, "backbone.resolution"),
        call=_pipeline_arguments(config),
    )


def _pipeline_arguments(config: Mapping[str, Any]) -> str:
    """Return the arguments of the pipeline, without the prompt and the size.

    It is the number of steps of an evaluation, and what the backbone's family adds.
    """
    steps = _setting(config, "eval.steps")
    number = f", num_inference_steps={steps}" if steps else ""
    target = _setting(config, "backbone._target_")
    if target is None:
        return number
    # Not `pydoc.locate`: its frames refer to themselves, and would keep the run's models alive.
    family: Any = pkgutil.resolve_name(target)
    return f"{number}, {family.call_arguments.format_map(config['backbone'])}"


def _read_start(run: Path) -> dict[str, float]:
    """Return the scores of the evaluation before the first iteration; empty if there is none."""
    rows = read_rows(run, 0, 1)
    return _evaluation_scores(rows[0]) if rows else {}


def _evaluation_scores(values: Mapping[str, float]) -> dict[str, float]:
    """Return the numbers of an evaluation that are finite."""
    return {
        key: value
        for key, value in values.items()
        if key.startswith("eval/") and math.isfinite(value)
    }


def _describe_scores(
    iterations: int, scores: Mapping[str, float], start: Mapping[str, float]
) -> list[str]:
    """Return a table of the scores of these weights, and of those of the start if known."""
    if not scores:
        return ["These weights were not evaluated."]
    columns = {iterations: scores}
    if start:
        columns = {0: start} | columns
    header = ("held-out prompts", *(f"iteration {iteration}" for iteration in columns))
    cells = [
        (key, *(f"{column[key]:.4g}" if key in column else "-" for column in columns.values()))
        for key in sorted(scores)
    ]
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
