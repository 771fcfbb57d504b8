"""What all diffusers pipelines of flow matching share, whatever their architecture."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from huggingface_hub import save_torch_state_dict
from huggingface_hub.errors import GatedRepoError
from jaxtyping import Float
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor, nn

from grpo_guard.assets import locate
from grpo_guard.pipeline.encoding import Encode, cached, singly
from grpo_guard.types import Condition, ConfigError, Velocity, component, require

Dtype = Literal["float32", "float16", "bfloat16"]


def computing(x: Tensor, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Forwards in `dtype` on the device of x, whatever weights are kept in; as they are on the meta device."""
    if x.is_meta:
        return nullcontext()
    return torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32)


@runtime_checkable
class Adapters(Protocol):
    """Something small to train instead of the transformer."""

    def attach(self, transformer: ModelMixin) -> None:
        """Add trainable adapters to a frozen transformer."""


@component
class Checkpoint(ABC):
    """A diffusers checkpoint, fine-tuned in full or by adapters.

    `model` is a shipped asset, a folder or a hub id. `dtype` is what the policy computes in; what is trained of it is
    kept in float32. With a folder `prompt_cache`, prompts are encoded once ever, and the text encoders stay off the
    device but for that. A family says how long a prompt may be, and by `call` (filled from its settings) what its
    pipeline is given beside the prompt to draw alike.
    """

    model: str
    resolution: int
    guidance: float
    dtype: Dtype
    vae_dtype: Dtype
    text_dtype: Dtype
    microbatch: int
    lora: Adapters | None
    gradient_checkpointing: bool
    prompt_cache: str | None
    kind: ClassVar[type[DiffusionPipeline]]
    multiple: ClassVar[int]
    call: ClassVar[str]
    dispensable: ClassVar[frozenset[str]] = frozenset()
    layout: ClassVar[torch.memory_format] = torch.channels_last

    def __post_init__(self) -> None:
        require(
            self.resolution % self.multiple == 0,
            f"resolution={self.resolution} is no multiple of {self.multiple}; give one that is",
        )
        require(self.microbatch > 0, f"microbatch={self.microbatch} is not positive")
        locate("model", self.model)

    @property
    @abstractmethod
    def longest(self) -> int:
        """Tokens that a prompt may have."""

    @abstractmethod
    def around(self, pipe: DiffusionPipeline, device: torch.device) -> PipelineModel:
        """The model around a pipeline that is on the device."""

    def load(self, device: torch.device) -> PipelineModel:
        """The model on the device; raises ConfigError where its weights cannot be had."""
        return self.around(self.pipeline(device), device)

    def pipeline(self, device: torch.device) -> DiffusionPipeline:
        """The pipeline on the device, all of it frozen but what is to be trained."""
        self._check_dtypes(device)
        pipe = self._read()
        for name, part in modules(pipe).items():
            away = name.startswith("text_encoder") and self.prompt_cache is not None
            part.requires_grad_(False).eval().to("cpu" if away else device)
        pipe.vae.to(memory_format=self.layout)
        self.open(pipe.transformer)
        return pipe

    def open(self, transformer: ModelMixin) -> None:
        """Make trainable what is to be trained, in float32."""
        if self.lora is None:
            transformer.requires_grad_(True)
        else:
            self.lora.attach(transformer)
        for parameter in transformer.parameters():
            parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
        if self.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()

    def _check_dtypes(self, device: torch.device) -> None:
        """Refuse bfloat16 where it would be emulated, number by number."""
        if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            for key in ("dtype", "vae_dtype", "text_dtype"):
                name = torch.cuda.get_device_name(device)
                require(
                    getattr(self, key) != "bfloat16",
                    f"backbone.{key}=bfloat16 is not known to {name}; use float16",
                )

    def _read(self) -> DiffusionPipeline:
        """The checkpoint as it is; parts that its index gives as null, such as T5, stay away."""
        folder, transformer = locate("model", self.model), self.dtype if self.lora else "float32"
        names = {"transformer": transformer, "vae": self.vae_dtype, "default": self.text_dtype}
        dtypes = {part: getattr(torch, name) for part, name in names.items()}
        try:
            index = self.kind.load_config(folder)
            self._check_index(index)
            absent = {part: None for part, value in index.items() if value == [None, None]}
            return self.kind.from_pretrained(folder, dtype=dtypes, use_safetensors=True, **absent)
        except GatedRepoError as error:
            raise ConfigError(
                f"backbone.model={self.model} is gated; accept its licence on its hub page, then `hf auth login`"
            ) from error
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"backbone.model={self.model} cannot be loaded ({reason}); give a folder with model_index.json,"
                f" {', '.join(self.parts())}, as `hf download` makes it"
            ) from error

    @classmethod
    def parts(cls) -> list[str]:
        """The subfolders that a checkpoint must have."""
        names, _ = cls.kind._get_signature_keys(cls.kind)
        return sorted({*names} - {*cls.kind._optional_components} - cls.dispensable)

    def _check_index(self, index: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of another pipeline, or one that lacks a part."""
        found, wanted = index.get("_class_name"), self.kind.__name__
        require(
            found == wanted,
            f"backbone.model={self.model} is a {found}, not a {wanted}; choose the backbone of its family",
        )
        missing = [part for part in self.parts() if index.get(part, [None, None]) == [None, None]]
        require(
            not missing,
            f"backbone.model={self.model} has no {', '.join(missing)}; give a complete diffusers folder",
        )


def modules(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """The networks of a pipeline by their names."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


class PipelineModel(ABC):
    """A loaded pipeline around its policy; a family overrides what is its own. `shape` is one latent's."""

    def __init__(
        self,
        pipe: DiffusionPipeline,
        recipe: Checkpoint,
        shape: tuple[int, ...],
        device: torch.device,
    ) -> None:
        self.pipe, self.recipe, self.shape, self.device = pipe, recipe, shape, device
        self.dtype: torch.dtype = getattr(torch, recipe.dtype)

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> Condition:
        """Texts as the pipeline encodes them."""

    @abstractmethod
    def velocity(self, guidance: float) -> nn.Module:
        """A policy around the transformer: (latents "R ...", times "R" in [0, 1], Condition) -> velocities "R ..."."""

    @cached_property
    def policy(self) -> nn.Module:
        """The velocity that is trained."""
        return self.velocity(self.recipe.guidance)

    @cached_property
    def encode(self) -> Encode:
        """Encodes prompts, each but once."""
        if self.recipe.prompt_cache is None:
            return singly(self.embed)
        encoders = {
            name: part
            for name, part in modules(self.pipe).items()
            if name.startswith("text_encoder")
        }
        salt, folder = f"{self.recipe.longest} tokens", Path(self.recipe.prompt_cache)
        return cached(self.embed, encoders, salt, folder, self.device)

    def times(self, steps: int) -> Float[Tensor, " T1"]:
        """The scheduler's own sigmas, with its shift."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.pipe.scheduler.config)
        scheduler.set_timesteps(steps)
        sigmas: Tensor = scheduler.sigmas
        return sigmas

    def unpacked(self, latents: Float[Tensor, "B ..."]) -> Float[Tensor, "B C ..."]:
        """Latents in the shape of the autoencoder's."""
        return latents

    def scaled(self, latents: Float[Tensor, "B C ..."]) -> Float[Tensor, "B C ..."]:
        """Latents at the scale of the autoencoder's."""
        config = self.pipe.vae.config
        scaled: Tensor = latents / config.scaling_factor + config.shift_factor
        return scaled

    def decoded(self, latents: Float[Tensor, "B C ..."]) -> Float[Tensor, "B 3 H W"]:
        """The autoencoder's images, in [-1, 1]."""
        images: Tensor = self.pipe.vae.decode(latents, return_dict=False)[0]
        return images

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "B ..."]) -> Float[Tensor, "B 3 H W"]:
        """Images in [0, 1], float32, decoded a few at a time."""
        parts = (
            self.scaled(self.unpacked(latents))
            .to(self.pipe.vae.dtype)
            .split(self.recipe.microbatch)
        )
        images = torch.cat([self.decoded(part).float() for part in parts])
        return (images / 2 + 0.5).clamp(0, 1).contiguous()

    def reference(self) -> Velocity:
        """The policy without its adapters or, where all of it is trained, a frozen copy, made once."""
        return self._without_adapters if self.recipe.lora else self._copy

    def unguided(self) -> Velocity:
        """The same transformer under a guidance of 1."""
        return self.velocity(1.0)

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """`lora/` for `load_lora_weights`, or `transformer/` for `from_pretrained`."""
        transformer: Any = self.pipe.transformer
        trained = {name.removeprefix("transformer."): value for name, value in weights.items()}
        if self.recipe.lora is None:
            trained = {**transformer.state_dict(), **trained}  # and what is fixed, such as places
            transformer.save_config(folder / "transformer")
            pattern = SAFETENSORS_WEIGHTS_NAME.replace(".safetensors", "{suffix}.safetensors")
            save_torch_state_dict(trained, folder / "transformer", filename_pattern=pattern)
            return
        layers, recipe = (
            get_peft_model_state_dict(transformer, trained),
            transformer.peft_config["default"].to_dict(),
        )
        type(self.pipe).save_lora_weights(
            folder / "lora",
            transformer_lora_layers=layers,
            transformer_lora_adapter_metadata=recipe,
        )

    def restore(self, folder: Path) -> None:
        """Take the weights that `save` has written; raises ConfigError where they are missing or of other shapes."""
        try:
            self._take_whole(folder) if self.recipe.lora is None else self._take_adapters(folder)
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"{folder} does not fit this backbone ({reason}); give a checkpoint of this run"
            ) from error

    def _take_whole(self, folder: Path) -> None:
        saved = type(self.pipe.transformer).from_pretrained(
            folder / "transformer", use_safetensors=True
        )
        self.pipe.transformer.load_state_dict(saved.state_dict())

    def _take_adapters(self, folder: Path) -> None:
        state = self.pipe.lora_state_dict(folder / "lora")
        layers = {key.removeprefix("transformer."): value for key, value in state.items()}
        found = set_peft_model_state_dict(self.pipe.transformer, layers)
        missing = [key for key in found.missing_keys if "lora_" in key]
        require(
            not found.unexpected_keys and not missing,
            f"{folder} holds other adapters; give a checkpoint of this run",
        )

    def _without_adapters(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.pipe.transformer.disable_adapters()
        try:
            v: Tensor = self.policy(x, t, condition)
        finally:
            self.pipe.transformer.enable_adapters()
        return v

    @cached_property
    def _copy(self) -> nn.Module:
        return copy.deepcopy(self.policy).requires_grad_(False)


class PackedModel(PipelineModel):
    """A pipeline of packed latents, (H / 16 * W / 16, 4 C): two by two places are one token."""

    def __init__(self, pipe: DiffusionPipeline, recipe: Checkpoint, device: torch.device) -> None:
        self.side = recipe.resolution // (2 * pipe.vae_scale_factor)
        super().__init__(pipe, recipe, (self.side**2, pipe.transformer.config.in_channels), device)

    def times(self, steps: int) -> Float[Tensor, " T1"]:
        """The scheduler's sigmas, shifted by the number of tokens where its configuration says so."""
        config = self.pipe.scheduler.config
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        ends = (
            config.base_image_seq_len,
            config.max_image_seq_len,
            config.base_shift,
            config.max_shift,
        )
        scheduler.set_timesteps(
            sigmas=np.linspace(1.0, 1 / steps, steps), mu=calculate_shift(self.shape[0], *ends)
        )
        sigmas: Tensor = scheduler.sigmas
        return sigmas

    def unpacked(self, latents: Float[Tensor, "B ..."]) -> Float[Tensor, "B C ..."]:
        """Latents in the shape of the autoencoder's."""
        side, scale = self.recipe.resolution, self.pipe.vae_scale_factor
        unpacked: Tensor = self.pipe._unpack_latents(latents, side, side, scale)
        return unpacked
