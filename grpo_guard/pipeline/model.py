"""Loaded pipelines of flow matching: everything around the policy that the families share."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from jaxtyping import Float, Float64
from safetensors import SafetensorError
from torch import Tensor, nn

from grpo_guard.parallel.blocks import core
from grpo_guard.pipeline.compiling import compile_blocks
from grpo_guard.pipeline.encoding import EncodeBy, cache_on_disk, encode_each_once
from grpo_guard.pipeline.recipe import PipelineRecipe, modules
from grpo_guard.pipeline.weights import (
    INITIAL,
    TRAINED,
    freeze_initial_adapters,
    load_adapters,
    load_transformer,
    save_adapters,
    save_transformer,
)
from grpo_guard.schema import ConfigError
from grpo_guard.shortage import is_shortage
from grpo_guard.tensor_files import write_like_python
from grpo_guard.types import Condition, Velocity


def autocast(x: Tensor, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Compute in `dtype` on the device of `x`, whatever dtype the weights have.

    Does nothing for float32 and float64, and on the meta device, which autocast does not know.
    """
    if x.is_meta:
        return nullcontext()
    return torch.autocast(x.device.type, dtype, enabled=dtype in (torch.bfloat16, torch.float16))


class PipelineModel(ABC):
    """A loaded pipeline around its policy. A family says how it embeds prompts and calls the
    policy.

    `shape` is one latent's; `dtype` is what the policy computes in.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        recipe: PipelineRecipe,
        shape: tuple[int, ...],
        device: torch.device,
    ) -> None:
        self.pipe = pipe
        self.recipe = recipe
        self.shape = shape
        self.device = device
        self.dtype: torch.dtype = getattr(torch, recipe.dtype)
        self.original: PipelineModel | None = None
        """The model that `at` made this one from."""
        self._compile(pipe.transformer)

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> Condition:
        """Encode texts by the pipeline's own encoders, without a cache."""

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Image tokens of one latent in the transformer."""

    @abstractmethod
    def make_policy(self, guidance: float) -> nn.Module:
        """Make a policy around the transformer, which all policies of a model share.

        The policy maps latents "R ...", times "R" in [0, 1] and a Condition to velocities "R ...".
        """

    @cached_property
    def policy(self) -> nn.Module:
        """The policy that is trained, under the recipe's guidance."""
        return self.make_policy(self.recipe.guidance)

    def encode(self, texts: Sequence[str]) -> Condition:
        """Encode prompts; the same text is encoded only once, with a cache also across runs."""
        return self.encode_by(self.embed, texts)

    @cached_property
    def encode_by(self) -> EncodeBy:
        """How `encode` calls `embed`.

        It does not keep `embed`. The model would then refer to itself, and its memory would be
        freed only when Python next looks for such cycles: after the next model is loaded.
        """
        if self.recipe.prompt_cache is None:
            return encode_each_once
        encoders = {
            name: part
            for name, part in modules(self.pipe).items()
            if name.startswith("text_encoder")
        }
        salt = f"{self.recipe.max_prompt_tokens} tokens"
        folder = Path(self.recipe.prompt_cache)
        return cache_on_disk(encoders, salt, folder, self.device)

    def times(self, steps: int) -> Float[Tensor, " T1"]:
        """Return the scheduler's sigmas, with its shift: steps + 1 times from 1 down to 0."""
        config = self.pipe.scheduler.config
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        mu = self.token_shift() if config.use_dynamic_shifting else None
        scheduler.set_timesteps(steps, sigmas=self.unshifted_times(steps), mu=mu)
        sigmas: Tensor = scheduler.sigmas
        return sigmas

    def unshifted_times(self, steps: int) -> Float64[np.ndarray, " T"] | None:
        """Return the times above 0 that the scheduler shifts; None: the scheduler's own."""
        return None

    def token_shift(self) -> float:
        """Return the logarithm of the time shift that the scheduler's config gives our tokens."""
        config = self.pipe.scheduler.config
        shift: float = calculate_shift(
            self.tokens,
            config.base_image_seq_len,
            config.max_image_seq_len,
            config.base_shift,
            config.max_shift,
        )
        return shift

    def unpack_latents(self, latents: Float[Tensor, "B ..."]) -> Float[Tensor, "B C ..."]:
        """Reshape the policy's latents to the autoencoder's shape."""
        return latents

    def rescale_latents(self, latents: Float[Tensor, "B C ..."]) -> Float[Tensor, "B C ..."]:
        """Undo the normalisation of latents: return them at the autoencoder's own scale."""
        config = self.pipe.vae.config
        rescaled: Tensor = latents / config.scaling_factor + config.shift_factor
        return rescaled

    def run_decoder(self, latents: Float[Tensor, "B C ..."]) -> Float[Tensor, "B 3 H W"]:
        """Decode rescaled latents to images in [-1, 1]."""
        images: Tensor = self.pipe.vae.decode(latents, return_dict=False)[0]
        return images

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "B ..."]) -> Float[Tensor, "B 3 H W"]:
        """Decode the policy's latents to float32 images in [0, 1], a microbatch at a time."""
        rescaled = self.rescale_latents(self.unpack_latents(latents)).to(self.pipe.vae.dtype)
        parts = rescaled.split(self.recipe.microbatch)
        images = torch.cat([self.run_decoder(part).float() for part in parts])
        return (images / 2 + 0.5).clamp(0, 1).contiguous()

    def reference(self) -> Velocity:
        """Return the policy as it was loaded; call this before training begins.

        It has the weights of the recipe's `init`, if there is one. It is a frozen copy when the
        whole transformer is trained. With adapters, it is the policy without them or, if they came
        from `init`, with a frozen copy of them. Copies are made at the first call.
        """
        if self.recipe.lora is None:
            return self._frozen_policy
        if self.recipe.init is None:
            return self._without_adapters
        freeze_initial_adapters(self.pipe.transformer)
        return self._with_initial_adapters

    def unguided(self) -> Velocity:
        """Return a policy of the same transformer under a guidance of 1."""
        return self.make_policy(1.0)

    def at(self, resolution: int) -> PipelineModel:
        """Return the model at another resolution: the same networks, latents of another size.

        Raises ConfigError if the checkpoint cannot draw it.
        """
        if resolution == self.recipe.resolution:
            return self
        resized = replace(self.recipe, resolution=resolution).wrap(self.pipe, self.device)
        resized.encode_by = self.encode_by
        resized.original = self.original or self
        return resized

    def widen(self) -> None:
        """Let the policy compute in float32 from now on, with the weights rounded as they are."""
        policy: Any = self.policy
        policy.float()
        policy.dtype = torch.float32
        self.dtype = torch.float32

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write weights, named as in the policy, in the format that diffusers loads.

        Adapters go to `lora/`, for `load_lora_weights`; a whole transformer goes to `transformer/`,
        for `from_pretrained`.
        """
        trained = {name.removeprefix("transformer."): value for name, value in weights.items()}
        save = save_transformer if self.recipe.lora is None else save_adapters
        with write_like_python(folder):
            save(self.pipe, trained, folder)

    def restore(self, folder: Path) -> None:
        """Load weights that `save` wrote; raises ConfigError if they are missing or do not fit."""
        self._load(folder, str(folder), "give a checkpoint of this run")

    def load_init(self, place: Path) -> None:
        """Load the weights that training begins from; raises ConfigError if they do not fit."""
        remedy = (
            "give checkpoints/<n> of a run with the same backbone.lora, or its adapters as"
            " diffusers saves them"
        )
        self._load(place, f"backbone.init={place}", remedy)

    def _load(self, place: Path, name: str, remedy: str) -> None:
        try:
            if self.recipe.lora is None:
                load_transformer(self.pipe, place)
            else:
                load_adapters(self.pipe, place)
        except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
            if is_shortage(error):
                raise
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"{name} does not fit this backbone ({reason}); {remedy}") from error

    def _without_adapters(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.pipe.transformer.disable_adapters()
        try:
            v: Tensor = self.policy(x, t, condition)
        finally:
            self.pipe.transformer.enable_adapters()
        return v

    def _with_initial_adapters(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.pipe.transformer.set_adapter(INITIAL)
        try:
            v: Tensor = self.policy(x, t, condition)
        finally:
            self.pipe.transformer.set_adapter(TRAINED)
        return v

    @cached_property
    def _frozen_policy(self) -> nn.Module:
        policy = self.make_policy(self.recipe.guidance)
        policy.transformer = (self.original or self)._frozen_transformer
        return policy

    @cached_property
    def _frozen_transformer(self) -> nn.Module:
        """A copy of the transformer that is not trained, for all resolutions."""
        frozen = copy.deepcopy(core(self.policy)).requires_grad_(False)
        # A copy of a module is not compiled, and must compute exactly as the policy does.
        self._compile(frozen)
        return frozen

    def _compile(self, transformer: nn.Module) -> None:
        """Compile the transformer if the recipe says so; without storage, nothing is computed."""
        if self.recipe.compile and self.device.type != "meta":
            compile_blocks(transformer)


class PackedModel(PipelineModel):
    """A pipeline whose latents are packed, (H / 16 * W / 16, 4 C): 2 x 2 places are one token."""

    def __init__(
        self, pipe: DiffusionPipeline, recipe: PipelineRecipe, device: torch.device
    ) -> None:
        self.side: int = recipe.resolution // (2 * pipe.vae_scale_factor)
        shape = (self.side**2, pipe.transformer.config.in_channels)
        super().__init__(pipe, recipe, shape, device)

    @property
    def tokens(self) -> int:
        """Image tokens of one latent."""
        return self.side**2

    def unshifted_times(self, steps: int) -> Float64[np.ndarray, " T"]:
        """Return evenly spaced times, as the pipelines do; the scheduler's own are other ones."""
        return np.linspace(1.0, 1 / steps, steps)

    def unpack_latents(self, latents: Float[Tensor, "B ..."]) -> Float[Tensor, "B C ..."]:
        """Reshape tokens to the autoencoder's latents."""
        side = self.recipe.resolution
        unpacked: Tensor = self.pipe._unpack_latents(
            latents, side, side, self.pipe.vae_scale_factor
        )
        return unpacked
