"""The files of what was trained, adapters or a whole transformer, as diffusers reads them."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from huggingface_hub import save_torch_state_dict
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

ADAPTERS = "lora"
"""Folder of a checkpoint with adapters."""
TRANSFORMER = "transformer"
"""Folder of a checkpoint with a whole transformer."""
TRAINED = "default"
"""Name that peft gives the adapters that are trained."""
INITIAL = "initial"
"""Name of a frozen copy of the adapters that training began from."""


def save_transformer(pipe: DiffusionPipeline, trained: Mapping[str, Tensor], folder: Path) -> None:
    """Write a whole transformer to `transformer/`, for `from_pretrained`."""
    transformer: Any = pipe.transformer
    # The state also has what is not trained, such as position embeddings.
    state = {**transformer.state_dict(), **trained}
    transformer.save_config(folder / TRANSFORMER)
    pattern = SAFETENSORS_WEIGHTS_NAME.replace(".safetensors", "{suffix}.safetensors")
    save_torch_state_dict(state, folder / TRANSFORMER, filename_pattern=pattern)


def load_transformer(pipe: DiffusionPipeline, folder: Path) -> None:
    """Load the transformer that `save_transformer` wrote into a folder.

    Raises ValueError or RuntimeError if it does not fit, and OSError if it cannot be read.
    """
    transformer: Any = pipe.transformer
    place = folder / TRANSFORMER
    if not place.is_dir():
        raise ValueError(f"it has no {TRANSFORMER}/")
    name = json.loads((place / CONFIG_NAME).read_text(encoding="utf-8")).get("_class_name")
    if name != type(transformer).__name__:
        raise ValueError(f"it holds a {name}, not a {type(transformer).__name__}")
    saved = type(transformer).from_pretrained(place, use_safetensors=True)
    transformer.load_state_dict(saved.state_dict())


def save_adapters(pipe: DiffusionPipeline, trained: Mapping[str, Tensor], folder: Path) -> None:
    """Write adapters to `lora/`, for `load_lora_weights`.

    Their scale, alpha / rank, is multiplied into B, and the metadata say alpha = rank: whoever
    reads the tensors alone takes that for granted, and would otherwise get weaker adapters.
    """
    transformer: Any = pipe.transformer
    config = transformer.peft_config[TRAINED]
    layers = get_peft_model_state_dict(transformer, dict(trained))
    scale = config.lora_alpha / config.r
    type(pipe).save_lora_weights(
        folder / ADAPTERS,
        transformer_lora_layers={
            name: value * scale if _layer_of_b(name) else value for name, value in layers.items()
        },
        transformer_lora_adapter_metadata=config.to_dict() | {"lora_alpha": config.r},
    )


def load_adapters(pipe: DiffusionPipeline, place: Path) -> None:
    """Load adapters from a folder or a file, as strong as `load_lora_weights` makes them.

    `place` is a folder with `lora/`, a folder that diffusers' `save_lora_weights` wrote, or a file
    of one. Raises ValueError or KeyError if the adapters do not fit the attached ones, and OSError
    or SafetensorError if they cannot be read.
    """
    transformer: Any = pipe.transformer
    config = transformer.peft_config[TRAINED]
    layers = _read_adapters(pipe, place, config.lora_alpha / config.r)
    attached = get_peft_model_state_dict(transformer)
    differing = sorted(layers.keys() ^ attached.keys())
    if differing:
        where = "there" if differing[0] in layers else "here"
        raise ValueError(f"it holds other adapters, {differing[0]} is only {where}")
    for name, value in attached.items():
        shapes = [tuple(tensor.shape) for tensor in (layers[name], value)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{name} has the shape {shapes[0]}, and backbone.lora.rank={config.r} makes it"
                f" {shapes[1]}"
            )
    set_peft_model_state_dict(transformer, layers)


def freeze_initial_adapters(transformer: Any) -> None:
    """Keep a frozen copy of the adapters beside them, once; the trained ones stay in use."""
    if INITIAL in transformer.peft_config:
        return
    layers = get_peft_model_state_dict(transformer)
    with warnings.catch_warnings():
        # peft warns of a second set of adapters, which is what is wanted here.
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        transformer.add_adapter(copy.deepcopy(transformer.peft_config[TRAINED]), INITIAL)
    for name, parameter in transformer.named_parameters():
        if f".{INITIAL}." in name:
            # peft makes adapters in the dtype of their layer, which may be half precision.
            parameter.data = parameter.data.float()
    set_peft_model_state_dict(transformer, layers, adapter_name=INITIAL)
    # This also freezes the copy.
    transformer.set_adapter(TRAINED)


def _read_adapters(pipe: DiffusionPipeline, place: Path, scale: float) -> dict[str, Tensor]:
    """Read adapters by their names in the transformer, for adapters that `scale` multiplies."""
    if (place / ADAPTERS).is_dir():
        place = place / ADAPTERS
    # diffusers would take a folder without weights for the id of a repository on the hub.
    if not place.is_file() and not any(place.glob("*.safetensors")):
        raise ValueError("it has no adapters")
    # FLUX.1 returns the alphas of other programs' files apart, and others leave them in place.
    state, *apart, metadata = pipe.lora_state_dict(
        place, use_safetensors=True, return_alphas=True, return_lora_metadata=True
    )
    state = _drop_prefix(state)
    notes = _drop_prefix(metadata or {})
    if notes.get("alpha_pattern"):
        raise ValueError("it has an alpha for each layer")
    alphas = _drop_prefix(apart[0] or {}) if apart else {}
    alphas |= {name: state.pop(name) for name in list(state) if name.endswith(".alpha")}
    layers = {}
    for name, value in state.items():
        layer = _layer_of_b(name)
        if layer:
            rank = value.shape[1]
            alpha = float(alphas.get(f"{layer}.alpha", notes.get("lora_alpha", rank)))
            divisor = math.sqrt(rank) if notes.get("use_rslora") else rank
            value = value.float() * (alpha / divisor / scale)
        layers[name] = value
    return layers


def _drop_prefix(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("transformer."): value for name, value in values.items()}


def _layer_of_b(name: str) -> str:
    """Return the layer whose B has this name; empty if the name is that of an A."""
    layer, is_b, _ = name.partition(".lora_B.")
    return layer if is_b else ""
