"""The embedded checkpoints' generators: an SD3 and a FLUX.1 in small, trained by velocity matching."""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
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

from grpo_guard.world import captions, checker
from tiny.autoencoder import decoded, latent_pool
from tiny.fitting import Muon, fit
from tiny.pictures import DEVICE, Pool, sheet
from tiny.tokens import CONTEXT, T5_TOKENS, clip_tokenizer, ids, t5_tokenizer

Field = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(latents (B, 16, 8, 8), times (B,) in [0, 1], token ids (B, L)) -> velocities."""


def clip_config(vocabulary: int) -> CLIPTextConfig:
    """A CLIP text encoder of 64 channels."""
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


class Generator(nn.Module, ABC):
    """The trainable part of a pipeline: text encoders and transformer."""

    @abstractmethod
    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids (N, L) of all encoders, side by side."""

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, guidance: float = 1.0) -> Tensor:
        """Velocity of latents x (B, 16, 8, 8) at times t in [0, 1], as the pipeline has it."""

    @abstractmethod
    def pipeline(self, vae: AutoencoderKL) -> tuple[DiffusionPipeline, Mapping[str, list[None]]]:
        """The pipeline, and the parts that its index must name as absent."""

    def guided(self, scale: float) -> Field:
        """Classifier-free guidance."""
        empty = self.tokenize([""])

        def field(x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
            both = torch.cat([tokens, empty.expand_as(tokens)])
            v, base = self(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
            return base + scale * (v - base)

        return field


class SD3Text(Generator):
    """Two CLIP text encoders and the SD3 transformer; one set of token ids serves both."""

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
        return ids(self.tokenizer, texts)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, guidance: float = 1.0) -> Tensor:
        assert guidance == 1, "SD3 is not distilled"
        encoded = [encoder(tokens, output_hidden_states=True) for encoder in self.text]
        hidden = torch.cat([e.hidden_states[-2] for e in encoded], -1)
        pooled = torch.cat([e.text_embeds for e in encoded], -1)
        return self.transformer(x, hidden, pooled, 1000 * t, return_dict=False)[0]

    def pipeline(self, vae: AutoencoderKL) -> tuple[DiffusionPipeline, Mapping[str, list[None]]]:
        parts = ("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor")
        pipe = StableDiffusion3Pipeline(
            transformer=self.transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae,
            text_encoder=self.text[0],
            tokenizer=self.tokenizer,
            text_encoder_2=self.text[1],
            tokenizer_2=self.tokenizer,
            **dict.fromkeys(parts),
        )
        return pipe, {part: [None, None] for part in parts}


class FluxText(Generator):
    """A CLIP and a T5 text encoder and the FLUX.1 transformer, on latents packed two by two."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer, self.tokenizer_2 = clip_tokenizer(), t5_tokenizer()
        self.clip = CLIPTextModel(clip_config(len(self.tokenizer)))
        self.t5 = T5EncoderModel(
            T5Config(
                vocab_size=len(self.tokenizer_2),
                d_model=64,
                d_kv=16,
                d_ff=128,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
            )
        )
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
        self.register_buffer(
            "places", FluxPipeline._prepare_latent_image_ids(1, 4, 4, DEVICE, torch.float32), False
        )

    def tokenize(self, texts: list[str]) -> Tensor:
        return torch.cat([ids(self.tokenizer, texts), ids(self.tokenizer_2, texts)], 1)

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
        # with these ends, 16 tokens are shifted as much as FLUX.1's 1024 at 512 px
        scheduler = FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=64, base_shift=0.5,
            max_shift=1.15,
        )  # fmt: skip
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


@torch.no_grad()
def sample(field: Field, tokens: Tensor, *, steps: int, seed: int) -> Tensor:
    """Latents by Euler ODE steps over a shifted schedule."""
    x = torch.randn(len(tokens), 16, 8, 8, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    for t, t_next in zip(scheduler.sigmas[:-1], scheduler.sigmas[1:], strict=True):
        x = x + (t_next - t).to(DEVICE) * field(x, t.expand(len(x)).to(DEVICE), tokens)
    return x


class Examples:
    """Latents and token ids to train a generator on: at any step, a noised batch."""

    def __init__(
        self, work: Path, pool: Pool, vae: AutoencoderKL, model: Generator, batch: int
    ) -> None:
        self.pool, self.batch, self.latents = pool, batch, latent_pool(work, pool, vae)
        self.tokens, self.empty = (
            model.tokenize([p.text for p in pool.prompts]),
            model.tokenize([""]),
        )

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor, torch.Generator]:
        """Noised latents, logit-normal times, velocities, token ids, and the step's generator for more."""
        generator = torch.Generator().manual_seed(step)
        rows = torch.from_numpy(self.pool.rows(step, self.batch)).to(DEVICE)
        x0 = self.latents[rows].float()
        x1 = torch.randn(x0.shape, generator=generator).to(DEVICE)
        t = torch.sigmoid(torch.randn(self.batch, generator=generator)).to(DEVICE)
        x = x0 + t.view(-1, 1, 1, 1) * (x1 - x0)
        return x, t, x1 - x0, self.tokens[rows], generator


class Judge:
    """How well a field draws 128 held-out captions in 20 steps."""

    def __init__(
        self, work: Path, vae: AutoencoderKL, tokenize: Callable[[list[str]], Tensor]
    ) -> None:
        self.work, self.vae = work, vae
        self.prompts = captions.draw(np.random.default_rng(5), 128, captions.prompts(heldout=True))
        self.tokens = tokenize([p.text for p in self.prompts])
        self.words = torch.tensor([p.tag == "word" for p in self.prompts])

    def __call__(self, name: str, field: Field) -> dict[str, float]:
        x = decoded(self.vae, sample(field, self.tokens, steps=20, seed=11))
        verdict = checker.check((x / 2 + 0.5).clamp(0, 1).cpu().contiguous(), self.prompts)
        sheet(self.work / f"{name}samples.png", x[:64])
        found = {"facts": verdict.facts, "exact": verdict.exact, "clean": verdict.clean}
        means = {f"{name}{key}": value.mean().item() for key, value in found.items()}
        return means | {f"{name}words": verdict.exact[self.words].mean().item()}


def hidden(name: str) -> bool:
    """Whether a parameter is a hidden layer's."""
    return "transformer_blocks" in name or ".layers." in name or ".block." in name


def pretrain(
    name: str,
    work: Path,
    pool: Pool,
    vae: AutoencoderKL,
    model: Generator,
    *,
    steps: int,
    batch: int,
    lr: float,
) -> Generator:
    """Velocity matching with 10 % of the captions dropped, judged without and with classifier-free guidance."""
    examples, judge = Examples(work, pool, vae, model, batch), Judge(work, vae, model.tokenize)

    def loss(step: int) -> Tensor:
        x, t, v, tokens, generator = examples(step)
        drop = torch.rand(batch, 1, generator=generator).to(DEVICE) < 0.1
        return F.mse_loss(model(x, t, torch.where(drop, examples.empty, tokens)), v)

    def evaluate(average: Generator) -> dict[str, float]:
        return judge("", average) | judge("cfg3_", average.guided(3.0))

    return fit(
        name, work, model, loss, steps=steps, optimizer=Muon(model, hidden, lr), evaluate=evaluate,
        every=1000, ema=0.9995,
    )  # fmt: skip


def distil(
    work: Path,
    pool: Pool,
    vae: AutoencoderKL,
    teacher: Generator,
    *,
    steps: int,
    batch: int,
    lr: float,
) -> Generator:
    """A copy that takes the guidance as an input, 1 to 5, as FLUX.1-dev does (arXiv:2210.03142)."""
    model = copy.deepcopy(teacher).requires_grad_(True)
    examples, judge = Examples(work, pool, vae, model, batch), Judge(work, vae, model.tokenize)

    def loss(step: int) -> Tensor:
        x, t, _, tokens, generator = examples(step)
        scale = 1 + 4 * torch.rand(batch, generator=generator).to(DEVICE)
        with torch.no_grad():
            v, base = teacher(x, t, tokens), teacher(x, t, examples.empty.expand_as(tokens))
        return F.mse_loss(model(x, t, tokens, scale), base + scale.view(-1, 1, 1, 1) * (v - base))

    def evaluate(average: Generator) -> dict[str, float]:
        return judge("", average) | judge(
            "embedded35_", lambda x, t, tokens: average(x, t, tokens, 3.5)
        )

    return fit(
        "flux_distilled", work, model, loss, steps=steps, optimizer=Muon(model, hidden, lr), evaluate=evaluate,
        every=500, ema=0.999,
    )  # fmt: skip


def save(folder: Path, vae: AutoencoderKL, model: Generator) -> None:
    """Write the pipeline in float16."""
    pipe, absent = model.pipeline(vae)
    copy.deepcopy(pipe).to(torch.float16).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | absent, indent=2))
