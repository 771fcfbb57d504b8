"""The recipe of a pipeline: its settings, and reading a diffusers checkpoint by them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from diffusers import DiffusionPipeline, ModelMixin
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
)
from safetensors import SafetensorError
from torch import nn

from grpo_guard.assets import locate
from grpo_guard.keys import name_key
from grpo_guard.messages import first_line
from grpo_guard.pipeline.encoding import say_truncation_once
from grpo_guard.schema import Advice, AtMost, ConfigError, PositiveInt, component, require
from grpo_guard.shortage import is_shortage

if TYPE_CHECKING:
    from grpo_guard.pipeline.model import PipelineModel

Dtype = Literal["float32", "float16", "bfloat16"]
ABSENT = [None, None]
"""What the index of a checkpoint has for a part that the checkpoint lacks."""


@runtime_checkable
class Adapters(Protocol):
    """Small layers that are trained instead of the whole transformer."""

    def attach(self, transformer: ModelMixin) -> None:
        """Add trainable adapters to a frozen transformer."""


@component
class PipelineRecipe(ABC):
    """A diffusers checkpoint, fine-tuned in full or by adapters; the base of all families."""

    model: str
    """Checkpoint: a shipped one (sd3_tiny, flux_tiny), a diffusers folder, or a hub id org/name."""
    resolution: Annotated[PositiveInt, AtMost(16_384)]
    """Height and width of an image in pixels; a multiple of 8 for SD3, else of 16."""
    guidance: Annotated[float, AtMost(1000)]
    """Strength of the prompt, in training and in evaluation.

    SD3 and Qwen-Image: scale of classifier-free guidance, 1 or more; 1 switches it off and halves
    the cost. FLUX.1: the embedded guidance, 0 or more, which schnell ignores.
    """
    dtype: Dtype
    """Precision that the policy computes in: float32, float16 or bfloat16.

    Trained parameters are always kept in float32. With adapters, the frozen parameters are kept
    in this precision.
    """
    vae_dtype: Dtype
    """Precision of the autoencoder: float32, float16 or bfloat16."""
    text_dtype: Dtype
    """Precision of the text encoders: float32, float16 or bfloat16."""
    microbatch: PositiveInt
    """Number of images that the autoencoder decodes at a time."""
    lora: Annotated[Adapters | None, Advice("give null or a lora of conf/backbone")]
    """Low-rank adapters to train on a frozen transformer; null trains the whole transformer."""
    init: str | None = None
    """Weights that are loaded on top of `model` before training; null: `model` alone.

    A folder checkpoints/<n> of a run or, with adapters, a folder or file of a LoRA that diffusers
    loads; layers and rank must be those of `lora`, alpha may differ. The reference of a KL penalty
    and of eval.kl is the model with these weights: the model as it was loaded.
    """
    gradient_checkpointing: bool
    """Recompute activations in the backward pass instead of keeping them: less memory, slower."""
    compile: bool = False
    """Compile the blocks of the transformer by torch.compile; it needs a C++ compiler.

    Rollout, evaluation and update then run the same compiled code. It takes a minute or two in the
    first run, and seconds in later ones, which find the code in the user's cache (or in
    $TORCHINDUCTOR_CACHE_DIR). Numbers differ from those of false by rounding.
    """
    prompt_cache: str | None
    """Folder that keeps encoded prompts, for this and later runs; null keeps none.

    With a folder, text encoders are on the device only while a prompt is missing from it.
    """

    pipeline_class: ClassVar[type[DiffusionPipeline]]
    """The family's class in diffusers."""
    resolution_multiple: ClassVar[int]
    """What divides `resolution`: the autoencoder's downsampling times the transformer's patch."""
    call_arguments: ClassVar[str]
    """Arguments with which the pipeline draws what the policy draws, for the code on a model card.

    A format string of this recipe's settings; prompt and size are added.
    """
    optional_parts: ClassVar[frozenset[str]] = frozenset()
    """Parts that a checkpoint may lack, besides those that the pipeline itself makes optional."""
    vae_layout: ClassVar[torch.memory_format] = torch.channels_last
    """Memory format of the autoencoder."""

    def __post_init__(self) -> None:
        require(
            self.resolution % self.resolution_multiple == 0,
            f"resolution={self.resolution} is no multiple of {self.resolution_multiple};"
            " give one that is",
        )
        locate("model", self.model)
        require(
            self.init is None or Path(self.init).exists(),
            f"init={self.init} is not here; give checkpoints/<n> of a run, or a LoRA's folder or"
            " file",
        )

    @property
    @abstractmethod
    def max_prompt_tokens(self) -> int:
        """The pipeline's `max_sequence_length`: at how many tokens a prompt is cut."""

    def encoded_tokens(self, configs: Mapping[str, Mapping[str, Any]]) -> int:
        """Return the tokens of an encoded prompt, from the configurations of the networks."""
        return self.max_prompt_tokens

    @abstractmethod
    def wrap(self, pipe: DiffusionPipeline, device: torch.device) -> PipelineModel:
        """Make the model of a pipeline whose parts are on the device."""

    def load(self, device: torch.device) -> PipelineModel:
        """Load the model; raises ConfigError if its checkpoint or `init` cannot be read."""
        pipe = self.load_pipeline(device)
        with name_key("backbone."):
            model = self.wrap(pipe, device)
        if self.init is not None:
            model.load_init(Path(self.init))
        return model

    def load_pipeline(self, device: torch.device) -> DiffusionPipeline:
        """Load the pipeline onto the device and freeze all but what is to be trained."""
        self._check_dtypes(device)
        pipe = self._read()
        say_truncation_once(type(pipe).__module__)
        for name, part in modules(pipe).items():
            stays_away = name.startswith("text_encoder") and self.prompt_cache is not None
            part.requires_grad_(False).eval().to("cpu" if stays_away else device)
        pipe.vae.to(memory_format=self.vae_layout)
        self.make_trainable(pipe.transformer)
        return pipe

    def make_trainable(self, transformer: ModelMixin) -> None:
        """Unfreeze the transformer, or attach adapters; what is trainable becomes float32."""
        if self.lora is None:
            transformer.requires_grad_(True)
        else:
            self.lora.attach(transformer)
        for parameter in transformer.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if self.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()

    def _check_dtypes(self, device: torch.device) -> None:
        """Refuse bfloat16 on GPUs that only emulate it, which is many times slower."""
        if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            name = torch.cuda.get_device_name(device)
            for key in ("dtype", "vae_dtype", "text_dtype"):
                require(
                    getattr(self, key) != "bfloat16",
                    f"backbone.{key}=bfloat16 is not supported by {name}; use float16",
                )

    def _read(self) -> DiffusionPipeline:
        """Read the checkpoint; parts that its index has as absent, such as T5, are not loaded."""
        folder = locate("model", self.model)
        # A frozen transformer can be kept in half precision; weights that are trained cannot.
        dtypes = {
            "transformer": getattr(torch, self.dtype) if self.lora else torch.float32,
            "vae": getattr(torch, self.vae_dtype),
            "default": getattr(torch, self.text_dtype),
        }
        try:
            index = self.pipeline_class.load_config(folder)
            self._check_index(index)
            absent = {part: None for part, value in index.items() if value == ABSENT}
            return self.pipeline_class.from_pretrained(
                folder, dtype=dtypes, use_safetensors=True, **absent
            )
        except (OSError, ValueError, RuntimeError, SafetensorError, HTTPError) as error:
            if is_shortage(error):
                raise
            raise self._explain(error) from error

    def _explain(self, error: BaseException) -> ConfigError:
        """Return the error that says why the checkpoint cannot be read, and what to do."""
        # diffusers turns the hub's errors into an OSError with other words.
        causes = list(_causes(error))
        if any(isinstance(cause, GatedRepoError) for cause in causes):
            return ConfigError(
                f"backbone.model={self.model} is gated; accept its licence at"
                f" https://huggingface.co/{self.model}, then `hf auth login`"
            )
        if any(map(_is_of_network, causes)):
            return ConfigError(
                f"backbone.model={self.model} is not on this machine, and the hub cannot be reached"
                f" ({first_line(causes[-1])}); try again, or give a folder that `hf download` has"
                " made elsewhere"
            )
        parts = ", ".join(self.required_parts())
        return ConfigError(
            f"backbone.model={self.model} cannot be loaded ({first_line(error)}); give a folder"
            f" with model_index.json, {parts}, as `hf download` makes it"
        )

    @classmethod
    def required_parts(cls) -> list[str]:
        """Return the subfolders that a checkpoint must have."""
        names, _ = cls.pipeline_class._get_signature_keys(cls.pipeline_class)
        optional = {*cls.pipeline_class._optional_components} | cls.optional_parts
        return sorted({*names} - optional)

    def _check_index(self, index: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of another pipeline, or one that lacks a required part."""
        actual = index.get("_class_name")
        expected = self.pipeline_class.__name__
        require(
            actual == expected,
            f"backbone.model={self.model} is a {actual}, not a {expected};"
            " choose the backbone of its family",
        )
        missing = [part for part in self.required_parts() if index.get(part, ABSENT) == ABSENT]
        require(
            not missing,
            f"backbone.model={self.model} has no {', '.join(missing)};"
            " give a complete diffusers folder",
        )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and, one after another, those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_of_network(error: BaseException) -> bool:
    """Return whether an error means that the hub gave no answer."""
    # The hub's own errors are HTTPErrors, too, and OSErrors besides.
    failed = isinstance(error, HTTPError) and not isinstance(error, HfHubHTTPError)
    return failed or isinstance(error, LocalEntryNotFoundError)


def modules(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """Return the networks of a pipeline by name: transformer, vae, text_encoder, ..."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
