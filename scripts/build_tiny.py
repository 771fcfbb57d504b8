"""Train the embedded checkpoint from scratch: python scripts/build_tiny.py [--work DIR] [--out DIR] [--stages ...]

Stages, each resumable from the last state saved in --work: an AutoencoderKL, an SD3Transformer2DModel with its two
CLIP text encoders, two open_clip scorers (a proxy that knows few images and a better one, trained apart, that serves
as held-out gold), and a judgement of what was built. Uses a GPU when there is one.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from grpo_guard.backbone.sd3 import SD3
from grpo_guard.rollout import rollout
from grpo_guard.sde import schedule
from grpo_guard.sde.ode import Ode
from grpo_guard.tail.euler import Euler
from grpo_guard.types import Batch, Prompt, each
from grpo_guard.world import captions, checker, render

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CONTEXT = 16
CHUNK = 2048
STAGES = ["vae", "transformer", "proxy", "gold", "judge"]
console = Console(stderr=True)


# ------------------------------------------------------------------------------------------------ data


def draw(seed: int, count: int, *, heldout: bool = False) -> tuple[list[Prompt], np.ndarray]:
    """`count` prompts and an image of each (uint8, count x 64 x 64 x 3)."""
    rng = np.random.default_rng(seed)
    prompts = captions.draw(rng, count, captions.prompts(heldout=heldout))
    return prompts, render.render(prompts, rng)


def pixels(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) -> float (N, 3, H, W) in [-1, 1] on the device, channels last."""
    x = torch.from_numpy(images).to(DEVICE).permute(0, 3, 1, 2)
    return (x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


class Pool:
    """A growing set of rendered images and their prompts, drawn in chunks that are the same in every run."""

    def __init__(self, size: int, seed: int) -> None:
        chunks = [draw(seed * 10_000 + i, CHUNK) for i in track(range(math.ceil(size / CHUNK)), "rendering")]
        self.prompts = [p for prompts, _ in chunks for p in prompts][:size]
        self.images = np.concatenate([images for _, images in chunks])[:size]

    def rows(self, step: int, batch: int) -> np.ndarray:
        """The rows of a training step: sampled by the step's own address, so that resuming changes nothing."""
        return np.random.default_rng([7, step]).integers(0, len(self.prompts), batch)


# ------------------------------------------------------------------------------------------------ training


def cosine(step: int, steps: int, warmup: int = 200) -> float:
    """Learning-rate factor: linear warm-up, then a half cosine down to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def adamw(module: nn.Module, lr: float) -> torch.optim.Optimizer:
    """AdamW as it is usual for transformers."""
    return torch.optim.AdamW(module.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)


class Muon(torch.optim.Optimizer):
    """AdamW for all but the matrices of `hidden`, whose momentum is made orthogonal (Newton-Schulz, float32).

    torch.optim.Muon does the same matrix by matrix in bfloat16, which on a CPU takes longer than the gradient itself.
    """

    def __init__(self, module: nn.Module, hidden: Callable[[str], bool], lr: float, weight_decay: float = 0.01) -> None:
        named = list(module.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and hidden(name)]
        shapes = sorted({tuple(p.shape) for p in matrices})
        groups = [{"params": [p for p in matrices if p.shape == shape]} for shape in shapes]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        chosen = set(matrices)
        rest = [p for _, p in named if p not in chosen]
        self.rest = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step of both."""
        for group in self.param_groups:
            parameters, lr = group["params"], group["lr"]
            gradient = torch.stack([p.grad for p in parameters])
            momentum = self.state[parameters[0]].setdefault("momentum", torch.zeros_like(gradient))
            momentum.lerp_(gradient, 0.05)
            update = orthogonal(gradient.lerp(momentum, 0.95)) * 0.2 * math.sqrt(max(gradient.shape[1:]))
            torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
            torch._foreach_add_(parameters, list(update), alpha=-lr)
            self.rest.param_groups[0]["lr"] = lr
        self.rest.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self.rest.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, object]:
        return {"hidden": super().state_dict(), "rest": self.rest.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict["hidden"])
        self.rest.load_state_dict(state_dict["rest"])


def orthogonal(x: Tensor) -> Tensor:
    """The nearest orthogonal matrices of a batch (N, M, K), nearly: five steps of the quintic Newton-Schulz of Muon."""
    if x.shape[1] > x.shape[2]:
        return orthogonal(x.mT).mT
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.775 * gram) @ x
    return x


def fit(
    name: str,
    work: Path,
    module: nn.Module,
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    optimizer: torch.optim.Optimizer,
    evaluate: Callable[[nn.Module], dict[str, float]],
    every: int,
    ema: float = 0.999,
) -> nn.Module:
    """Train `module` for `steps`, resuming from `work/name.pt`, and return its exponential moving average.

    `work/name.jsonl` keeps the curve: step, seconds, loss and what `evaluate` says of the average.
    """
    state_file, curve = work / f"{name}.pt", work / f"{name}.jsonl"
    average = copy.deepcopy(module).requires_grad_(False)
    start, seconds = load_state(state_file, module, average, optimizer)
    clock, recent = time.perf_counter() - seconds, 0.0
    for step in track(range(start, steps), name, console=console):
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * cosine(step, steps)
        value = loss(step)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(ema, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
        recent += (value.item() - recent) / min(step - start + 1, 100)
        if (step + 1) % every == 0 or step + 1 == steps:
            save_state(state_file, module, average, optimizer, step + 1, time.perf_counter() - clock)
            row = {"step": step + 1, "seconds": time.perf_counter() - clock, "loss": recent, **evaluate(average)}
            with curve.open("a") as file:
                file.write(json.dumps(row) + "\n")
            console.print(name, {k: round(v, 4) for k, v in row.items()})
    return average


def load_state(
    file: Path, module: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """The step and the seconds that were reached, after loading the state of them; 0 where there is none."""
    if not file.exists():
        return 0, 0.0
    state = torch.load(file, map_location=DEVICE)
    module.load_state_dict(state["module"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"]


def save_state(
    file: Path, module: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, step: int, seconds: float
) -> None:
    """Write the training state beside `file`, then rename it over."""
    state = {"module": module.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**state, "step": step, "seconds": seconds}, file.with_suffix(".tmp"))
    os.replace(file.with_suffix(".tmp"), file)


# ------------------------------------------------------------------------------------------------ tokenizer


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose byte pairs make the world's words whole; all others are spelled."""
    blank = CLIPTokenizer(model_max_length=CONTEXT)
    alphabet = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    trainer = BpeTrainer(vocab_size=4096, min_frequency=1, initial_alphabet=alphabet, end_of_word_suffix="</w>")
    learned = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learned.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    learned.train_from_iterator(captions.vocabulary(), trainer)
    model = json.loads(learned.to_str())["model"]
    symbols = dict.fromkeys([*alphabet, *(c + "</w>" for c in alphabet), *model["vocab"], *blank.all_special_tokens])
    vocab = {symbol: i for i, symbol in enumerate(symbols)}
    return CLIPTokenizer(vocab=vocab, merges=[tuple(pair) for pair in model["merges"]], model_max_length=CONTEXT)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids (N, 16), padded."""
    ids = tokenizer(texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt").input_ids
    return ids.to(DEVICE)


# ------------------------------------------------------------------------------------------------ autoencoder


def new_vae() -> AutoencoderKL:
    """Three halvings: 64 x 64 x 3 -> 8 x 8 x 16 (D = 1024); its top layers are narrow so that decoding is cheap."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 32, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=1,  # more groups would normalise the few channels of the top layers one by one, and lose colour
        sample_size=64,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return vae.to(DEVICE, memory_format=torch.channels_last)


def build_vae(work: Path, pool: Pool, steps: int, batch: int) -> AutoencoderKL:
    """Trained on quarter crops for three quarters of the steps, which are four times as cheap, then on whole images.

    The latents' mean and scale are measured at the end and written into its configuration.
    """
    vae, (prompts, images) = new_vae(), draw(1, 256, heldout=True)

    def loss(step: int) -> Tensor:
        shown = pool.images[pool.rows(step, batch)]
        if step < 0.75 * steps:
            top, left = np.random.default_rng([8, step]).integers(0, 33, 2)
            shown = shown[:, top : top + 32, left : left + 32]
        x = pixels(np.ascontiguousarray(shown))
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(step)).to(DEVICE)
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return picture_loss(vae.decode(posterior.mean + posterior.std * noise).sample, x) + 1e-5 * kl

    @torch.no_grad()
    def evaluate(average: nn.Module) -> dict[str, float]:
        x = pixels(images)
        y = average.decode(average.encode(x).latent_dist.mean).sample
        verdict = checker.check((y.float() / 2 + 0.5).clamp(0, 1).cpu().contiguous(), prompts)
        sheet(work / "vae.png", torch.stack([x[:16], y[:16]], 1).flatten(0, 1))
        return {
            "l1": F.l1_loss(y, x).item(),
            "exact": verdict.exact.mean().item(),
            "facts": verdict.facts.mean().item(),
        }

    vae = fit("vae", work, vae, loss, steps=steps, optimizer=adamw(vae, 2e-3), evaluate=evaluate, every=500).eval()
    mean = encode(vae, pool.images[:2048]).float()
    vae.register_to_config(scaling_factor=round(1 / mean.std().item(), 4), shift_factor=round(mean.mean().item(), 4))
    return vae


def picture_loss(y: Tensor, x: Tensor) -> Tensor:
    """Absolute and squared error, and the error of the colour apart: left to itself, colour is learned last."""
    chroma = F.l1_loss(y - y.mean(1, keepdim=True), x - x.mean(1, keepdim=True))
    return F.l1_loss(y, x) + F.mse_loss(y, x) + 2 * chroma


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray) -> Tensor:
    """Unscaled posterior means, float16 (N, 16, 8, 8)."""
    parts = [
        vae.encode(pixels(images[i : i + 128])).latent_dist.mean.half()
        for i in track(range(0, len(images), 128), "encoding")
    ]
    return torch.cat(parts).contiguous()


def sheet(file: Path, x: Tensor, columns: int = 16) -> None:
    """Write images (N, 3, H, W) in [-1, 1] as a grid, enlarged twice."""
    array = ((x.clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).cpu().numpy()
    rows = [np.concatenate(list(array[i : i + columns]), 1) for i in range(0, len(array) // columns * columns, columns)]
    image = Image.fromarray(np.concatenate(rows))
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(file)


# ------------------------------------------------------------------------------------------------ text to image


class TextToLatent(nn.Module):
    """The trainable part of the pipeline: two CLIP text encoders and the SD3 transformer."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        text = CLIPTextConfig(
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
        self.text = nn.ModuleList([CLIPTextModelWithProjection(text) for _ in range(2)])
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

    def forward(self, x: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Velocity of latents x (B, 16, 8, 8) at times t in [0, 1], token ids (B, 16), as the pipeline has it."""
        encoded = [encoder(ids, output_hidden_states=True) for encoder in self.text]
        tokens = torch.cat([e.hidden_states[-2] for e in encoded], -1)
        pooled = torch.cat([e.text_embeds for e in encoded], -1)
        return self.transformer(x, tokens, pooled, 1000 * t, return_dict=False)[0]


@torch.no_grad()
def sample(model: TextToLatent, ids: Tensor, empty: Tensor, *, steps: int, guidance: float, seed: int) -> Tensor:
    """Latents by Euler ODE steps over the shifted schedule."""
    x = torch.randn(len(ids), 16, 8, 8, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    both = torch.cat([ids, empty.expand_as(ids)])
    for t, t_next in zip(scheduler.sigmas[:-1], scheduler.sigmas[1:], strict=True):
        if guidance == 1:
            v = model(x, t.expand(len(x)).to(DEVICE), ids)
        else:
            v, base = model(x.repeat(2, 1, 1, 1), t.expand(2 * len(x)).to(DEVICE), both).chunk(2)
            v = base + guidance * (v - base)
        x = x + (t_next - t).to(DEVICE) * v
    return x


def build_transformer(
    work: Path, pool: Pool, vae: AutoencoderKL, tokenizer: CLIPTokenizer, steps: int, batch: int, lr: float
) -> TextToLatent:
    """Velocity matching with logit-normal times, 10 % of the captions dropped."""
    torch.manual_seed(3)
    model = TextToLatent(len(tokenizer)).to(DEVICE)
    latents = latent_pool(work, pool, vae)
    ids, empty = tokenize(tokenizer, [p.text for p in pool.prompts]), tokenize(tokenizer, [""])
    prompts = captions.draw(np.random.default_rng(5), 128, captions.prompts(heldout=True))
    heldout = tokenize(tokenizer, [p.text for p in prompts])

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        rows = torch.from_numpy(pool.rows(step, batch)).to(DEVICE)
        x0 = latents[rows].float()
        x1 = torch.randn(x0.shape, generator=generator).to(DEVICE)
        t = torch.sigmoid(torch.randn(batch, generator=generator)).to(DEVICE)
        drop = torch.rand(batch, 1, generator=generator).to(DEVICE) < 0.1
        x = (1 - t).view(-1, 1, 1, 1) * x0 + t.view(-1, 1, 1, 1) * x1
        return F.mse_loss(model(x, t, torch.where(drop, empty, ids[rows])), x1 - x0)

    @torch.no_grad()
    def evaluate(average: nn.Module) -> dict[str, float]:
        row = {}
        for name, guidance in (("", 1.0), ("cfg3_", 3.0)):
            x = sample(average, heldout, empty, steps=20, guidance=guidance, seed=11)
            x = torch.cat(
                [vae.decode(z / vae.config.scaling_factor + vae.config.shift_factor).sample for z in x.split(64)]
            )
            verdict = checker.check((x / 2 + 0.5).clamp(0, 1).cpu().contiguous(), prompts)
            words = torch.tensor([p.tag == "word" for p in prompts])
            row |= {f"{name}facts": verdict.facts.mean().item(), f"{name}exact": verdict.exact.mean().item()}
            row |= {f"{name}clean": verdict.clean.mean().item(), f"{name}words": verdict.exact[words].mean().item()}
            sheet(work / f"{name}samples.png", x[:64])
        return row

    optimizer = Muon(model, lambda name: "transformer_blocks" in name or ".layers." in name, lr)
    return fit(
        "transformer", work, model, loss,
        steps=steps, optimizer=optimizer, evaluate=evaluate, every=1000, ema=0.9995,
    )  # fmt: skip


def latent_pool(work: Path, pool: Pool, vae: AutoencoderKL) -> Tensor:
    """Scaled latents of the whole pool, kept in `work`."""
    file = work / "latents.pt"
    if not file.exists():
        torch.save(encode(vae, pool.images), file)
    latents = torch.load(file, map_location=DEVICE)
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


# ------------------------------------------------------------------------------------------------ scorers


def scorer_config(vocabulary: int) -> dict[str, object]:
    """open_clip configuration of a small ViT and a small text transformer."""
    text = {"context_length": CONTEXT, "vocab_size": vocabulary, "width": 64, "heads": 4, "layers": 2}
    vision = {"image_size": 64, "patch_size": 8, "width": 96, "layers": 4, "head_width": 24, "mlp_ratio": 2.0}
    return {
        "embed_dim": 64,
        "vision_cfg": vision,
        "text_cfg": {**text, "eos_id": vocabulary - 1, "pool_type": "argmax"},
    }


def build_scorer(
    name: str, work: Path, tokenizer: CLIPTokenizer, *, images: int, seed: int, steps: int, batch: int = 96
) -> nn.Module:
    """A contrastive image-text scorer trained on `images` renders of its own."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**scorer_config(len(tokenizer))).to(DEVICE)
    pool = Pool(images, seed)
    ids = tokenize(tokenizer, [p.text for p in pool.prompts])
    texts = np.array([p.text for p in pool.prompts])
    prompts, pictures = draw(seed + 1, 512, heldout=True)
    heldout, shown = tokenize(tokenizer, [p.text for p in prompts]), pixels(pictures)
    other = torch.from_numpy(np.random.default_rng(0).permutation(512)).to(DEVICE)
    differs = torch.tensor([a.text != prompts[i].text for a, i in zip(prompts, other.tolist(), strict=True)])

    def loss(step: int) -> Tensor:
        rows = pool.rows(step, batch)
        shift = np.random.default_rng([9, step]).integers(-3, 4, 2)
        image = pixels(np.roll(pool.images[rows], shift, (1, 2)))
        a, b, scale = model(image, ids[torch.from_numpy(rows).to(DEVICE)])[:3]
        same = torch.from_numpy(texts[rows][:, None] == texts[rows][None]).float().to(DEVICE)
        logits, target = scale * a @ b.T, same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    @torch.no_grad()
    def evaluate(average: nn.Module) -> dict[str, float]:
        a, b, _ = average(shown, heldout)[:3]
        wins = ((a * b).sum(1) > (a * b[other]).sum(1)).cpu()[differs]
        return {"pairs": wins.float().mean().item()}

    return fit(
        name, work, model, loss, steps=steps, optimizer=adamw(model, 1e-3), evaluate=evaluate, every=250, ema=0.99
    )


def save_scorer(folder: Path, model: nn.Module, tokenizer: CLIPTokenizer) -> None:
    """Write a scorer as open_clip reads it (`local-dir:`): configuration, float16 weights, tokenizer."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = scorer_config(len(tokenizer))
    config["text_cfg"] = {**config["text_cfg"], "hf_tokenizer_name": "."}  # type: ignore[dict-item]
    half = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": half}, indent=2))
    weights = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)


# ------------------------------------------------------------------------------------------------ assembly


def save_pipeline(folder: Path, vae: AutoencoderKL, model: TextToLatent, tokenizer: CLIPTokenizer) -> None:
    """Write a float16 StableDiffusion3Pipeline without T5."""
    pipe = StableDiffusion3Pipeline(
        transformer=model.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=model.text[0],
        tokenizer=tokenizer,
        text_encoder_2=model.text[1],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
        image_encoder=None,
        feature_extractor=None,
    )
    copy.deepcopy(pipe).to(torch.float16).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    absent = {part: [None, None] for part in ("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor")}
    (folder / "model_index.json").write_text(json.dumps(index | absent, indent=2))


def judge(folder: Path, count: int = 512) -> None:
    """Show how well a checkpoint draws held-out captions in 20 ODE steps, loaded as a run loads it."""
    prompts = tuple(captions.draw(np.random.default_rng(6), count, captions.prompts(heldout=True)))
    index = torch.arange(count, device=DEVICE)
    batch = Batch(prompts=prompts, group=index, sample=index)
    shown = Table("guidance", "facts", "exact", "clean", "exact, words only", title=f"{count} held-out captions")
    for guidance in (1.0, 3.0, 4.5):
        recipe = SD3(
            model=str(folder), resolution=64, guidance=guidance, t5_tokens=0, microbatch=64, lora=None,
            dtype="float32", vae_dtype="float32", text_dtype="float32", gradient_checkpointing=False, prompt_cache=None,
        )  # fmt: skip
        model = recipe.load(DEVICE)
        steps = each(schedule(Ode(), model.times(20)), lambda x: x.to(DEVICE))
        path = rollout(
            model.policy, steps, batch, model.encode([p.text for p in prompts]), model.shape,
            address=(0, 0), microbatch=64, tail=Euler(),
        )  # fmt: skip
        verdict = checker.check(model.decode(path.sample).cpu(), prompts)
        words = verdict.exact[torch.tensor([p.tag == "word" for p in prompts])]
        values = (verdict.facts, verdict.exact, verdict.clean, words)
        shown.add_row(f"{guidance:g}", *(f"{v.mean().item():.3f} ± {error(v):.3f}" for v in values))
    console.print(shown)


def error(values: Tensor) -> float:
    """The standard error of a mean."""
    return values.std().item() / len(values) ** 0.5


def stages(args: argparse.Namespace) -> Iterator[str]:
    """Run the stages asked for, naming each as it ends."""
    tokenizer = build_tokenizer()
    if {"vae", "transformer"} & set(args.stages):
        pool = Pool(args.images, 1)
        vae = build_vae(args.work, pool, args.vae_steps, args.batch // 4)
        yield "vae"
    if "transformer" in args.stages:
        model = build_transformer(args.work, pool, vae, tokenizer, args.steps, args.batch, args.lr)
        save_pipeline(args.out / "sd3_tiny", vae.eval(), model.eval(), tokenizer)
        yield "transformer"
    for name, images, steps, seed in (
        ("proxy", args.proxy_images, args.proxy_steps, 21),
        ("gold", args.gold_images, args.gold_steps, 42),
    ):
        if name in args.stages:
            scorer = build_scorer(name, args.work, tokenizer, images=images, seed=seed, steps=steps)
            save_scorer(args.out / f"scorer_{name}", scorer, tokenizer)
            yield name
    if "judge" in args.stages:
        judge(args.out / "sd3_tiny")
        yield "judge"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/build_tiny"), help="states and curves, for resuming")
    parser.add_argument("--out", type=Path, default=Path("grpo_guard/assets"), help="where the checkpoints are written")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--images", type=int, default=65_536, help="renders that the pipeline is trained on")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3, help="of the transformer")
    parser.add_argument("--vae-steps", type=int, default=3500)
    parser.add_argument("--steps", type=int, default=9000, help="of the transformer")
    parser.add_argument("--proxy-images", type=int, default=400)
    parser.add_argument("--proxy-steps", type=int, default=750)
    parser.add_argument("--gold-images", type=int, default=40_960)
    parser.add_argument("--gold-steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    for stage in stages(args):
        console.print(f"done: {stage}")


if __name__ == "__main__":
    main()
