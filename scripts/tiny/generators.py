"""The embedded checkpoints' generators: a small SD3 and a small FLUX.1 with text encoders."""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from tiny.pictures import DEVICE
from tiny.tokens import CONTEXT, T5_TOKENS, clip_tokenizer, t5_tokenizer, token_ids

VelocityField = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(latents (B, 16, 8, 8), times (B,) in [0, 1], token ids (B, L)) -> velocities."""


def clip_config(vocabulary: int) -> CLIPTextConfig:
    """Return the configuration of a CLIP text encoder of 64 channels."""
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        projection_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )


def t5_config(vocabulary: int) -> T5Config:
    """Return the configuration of a T5 encoder of 64 channels."""
    return T5Config(
        vocab_size=vocabulary,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )


class Generator(nn.Module, ABC):
    """The trainable part of a pipeline: text encoders and transformer."""

    @abstractmethod
    def tokenize(self, texts: list[str]) -> Tensor:
        """Return the token ids (N, L) of all encoders, side by side."""

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, guidance: float = 1.0) -> Tensor:
        """Return the velocity of latents x (B, 16, 8, 8) at times t in [0, 1].

        The sign is the pipeline's: the velocity points from the image to the noise.
        """

    @abstractmethod
    def pipeline(self, vae: AutoencoderKL) -> tuple[DiffusionPipeline, Mapping[str, list[None]]]:
        """Return the pipeline, and the index entries of the parts that it lacks."""

    def guided(self, scale: float) -> VelocityField:
        """Return the velocity field with classifier-free guidance."""
        empty = self.tokenize([""])

        def field(x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
            both = torch.cat([tokens, empty.expand_as(tokens)])
            v, base = self(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
            return base + scale * (v - base)

        return field


class SD3Text(Generator):
    """Two CLIP text encoders and the SD3 transformer; both encoders read the same token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = clip_tokenizer()
        self.text = nn.ModuleList(
            [CLIPTextModelWithProjection(clip_config(len(self.tokenizer))) for _ in range(2)]
        )
        self.transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=16,
            out_channels=16,
            num_layers=4,
            attention_head_dim=24,
            num_attention_heads=4,
            joint_attention_dim=128,
            caption_projection_dim=96,
            pooled_projection_dim=128,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
        )

    def tokenize(self, texts: list[str]) -> Tensor:
        return token_ids(self.tokenizer, texts)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, guidance: float = 1.0) -> Tensor:
        assert guidance == 1, "SD3 has no guidance input"
        encoded = [encoder(tokens, output_hidden_states=True) for encoder in self.text]
        hidden = torch.cat([e.hidden_states[-2] for e in encoded], -1)
        pooled = torch.cat([e.text_embeds for e in encoded], -1)
        return self.transformer(x, hidden, pooled, 1000 * t, return_dict=False)[0]

    def pipeline(self, vae: AutoencoderKL) -> tuple[DiffusionPipeline, Mapping[str, list[None]]]:
        absent = ("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor")
        pipe = StableDiffusion3Pipeline(
            transformer=self.transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae,
            text_encoder=self.text[0],
            tokenizer=self.tokenizer,
            text_encoder_2=self.text[1],
            tokenizer_2=self.tokenizer,
            **dict.fromkeys(absent),
        )
        return pipe, {part: [None, None] for part in absent}


class FluxText(Generator):
    """A CLIP and a T5 text encoder and the FLUX.1 transformer, on latents packed 2 x 2."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = clip_tokenizer()
        self.tokenizer_2 = t5_tokenizer()
        self.clip = CLIPTextModel(clip_config(len(self.tokenizer)))
        self.t5 = T5EncoderModel(t5_config(len(self.tokenizer_2)))
        self.transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=2,
            num_single_layers=4,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            guidance_embeds=True,
            axes_dims_rope=(8, 12, 12),
        )
        places = FluxPipeline._prepare_latent_image_ids(1, 4, 4, DEVICE, torch.float32)
        self.register_buffer("places", places, persistent=False)

    def tokenize(self, texts: list[str]) -> Tensor:
        return torch.cat([token_ids(self.tokenizer, texts), token_ids(self.tokenizer_2, texts)], 1)

    def forward(
        self, x: Tensor, t: Tensor, tokens: Tensor, guidance: float | Tensor = 1.0
    ) -> Tensor:
        v = self.transformer(
            hidden_states=FluxPipeline._pack_latents(x, len(x), 16, 8, 8),
            encoder_hidden_states=self.t5(tokens[:, CONTEXT:])[0],
            pooled_projections=self.clip(tokens[:, :CONTEXT]).pooler_output,
            timestep=t,
            guidance=torch.zeros_like(t) + guidance,
            img_ids=self.places,
            txt_ids=x.new_zeros(T5_TOKENS, 3),
            return_dict=False,
        )[0]
        return FluxPipeline._unpack_latents(v, 64, 64, 8)

    def pipeline(self, vae: AutoencoderKL) -> tuple[DiffusionPipeline, Mapping[str, list[None]]]:
        scheduler = FlowMatchEulerDiscreteScheduler(
            shift=3.0,
            use_dynamic_shifting=True,
            # With these lengths, 16 tokens are shifted as much as FLUX.1's 1024 tokens at 512 px.
            base_image_seq_len=4,
            max_image_seq_len=64,
            base_shift=0.5,
            max_shift=1.15,
        )
        pipe = FluxPipeline(
            transformer=self.transformer,
            scheduler=scheduler,
            vae=vae,
            text_encoder=self.clip,
            tokenizer=self.tokenizer,
            text_encoder_2=self.t5,
            tokenizer_2=self.tokenizer_2,
        )
        return pipe, {part: [None, None] for part in ("image_encoder", "feature_extractor")}


def save_pipeline(folder: Path, vae: AutoencoderKL, model: Generator) -> None:
    """Write the pipeline in float16."""
    pipe, absent = model.pipeline(vae)
    copy.deepcopy(pipe).to(torch.float16).save_pretrained(folder)
    # diffusers leaves absent parts out of the index, and then warns of them when it loads it.
    file = folder / "model_index.json"
    index = json.loads(file.read_text())
    file.write_text(json.dumps(index | absent, indent=2))
