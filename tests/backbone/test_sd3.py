"""The backbone against diffusers' own pipeline, on the shipped checkpoint."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

from grpo_guard import rng
from grpo_guard.backbone.lora import Lora
from grpo_guard.backbone.sd3 import SD3, SD3Model
from grpo_guard.rollout import rollout
from grpo_guard.sde import schedule
from grpo_guard.sde.ode import Ode
from grpo_guard.tail.euler import Euler
from grpo_guard.types import Batch, ConfigError, Prompt

TINY = SD3(
    model="sd3_tiny", resolution=64, guidance=1.0, t5_tokens=0, dtype="float32", microbatch=8, lora=None
)  # fmt: skip
TEXTS = ["a red circle", 'the word "stop"', "two blue squares"]
LORA = Lora(rank=4, alpha=8, targets=["attn.to_q", "attn.add_q_proj"])


def load(**changes: object) -> SD3Model:
    return dataclasses.replace(TINY, **changes).load(torch.device("cpu"))


@pytest.fixture(scope="module")
def tiny() -> SD3Model:
    return load()


def sample(model: SD3Model, steps: int) -> torch.Tensor:
    index = torch.arange(len(TEXTS))
    batch = Batch(prompts=tuple(Prompt(text=t) for t in TEXTS), group=index, sample=index)
    plan, condition = schedule(Ode(), model.times(steps)), model.encode(TEXTS)
    return rollout(model.policy, plan, batch, condition, model.shape, address=(5, 0), microbatch=8, tail=Euler()).sample


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_ode_is_the_pipeline(guidance: float) -> None:
    model = load(guidance=guidance)
    noise = rng.normal(model.shape, [(5, 0, i, rng.START) for i in range(len(TEXTS))], "cpu")
    expected = model.pipe(
        TEXTS, latents=noise, num_inference_steps=6, guidance_scale=guidance, max_sequence_length=0,
        height=64, width=64, output_type="latent",
    ).images  # fmt: skip
    assert (sample(model, 6) - expected).abs().max() < 1e-4


def test_images_are_the_pipelines(tiny: SD3Model) -> None:
    latents = sample(tiny, 4)
    expected = tiny.pipe.image_processor.postprocess(
        tiny.pipe.vae.decode(latents / tiny.pipe.vae.config.scaling_factor + tiny.pipe.vae.config.shift_factor).sample,
        output_type="pt",
    )  # fmt: skip
    images = tiny.decode(latents)
    assert images.shape == (3, 3, 64, 64)
    assert (images - expected).abs().max() < 1e-5


def test_only_the_policy_is_trained(tiny: SD3Model) -> None:
    frozen = [tiny.pipe.vae, tiny.pipe.text_encoder, tiny.pipe.text_encoder_2]
    assert all(p.requires_grad for p in tiny.policy.parameters())
    assert not any(p.requires_grad for part in frozen for p in part.parameters())


def test_lora_trains_adapters_only_and_starts_as_the_base(tiny: SD3Model) -> None:
    model = load(lora=LORA)
    names = [name for name, p in model.policy.named_parameters() if p.requires_grad]
    assert names
    assert all("lora" in name for name in names)
    assert torch.equal(sample(model, 2), sample(tiny, 2))


def test_what_is_saved_loads_in_diffusers(tmp_path) -> None:
    model = load(lora=LORA)
    with torch.no_grad():
        for p in model.policy.parameters():
            p.add_(0.02 * torch.randn_like(p)) if p.requires_grad else None
    model.save(tmp_path)
    base = load()
    base.pipe.load_lora_weights(tmp_path / "lora")
    assert (sample(base, 3) - sample(model, 3)).abs().max() < 1e-4
    load().save(tmp_path)
    again = SD3Transformer2DModel.from_pretrained(tmp_path / "transformer")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), load().pipe.transformer.parameters(), strict=True))


def test_a_target_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"targets=\['attn.nothing'\] match no module"):
        load(lora=Lora(rank=4, alpha=8, targets=["attn.nothing"]))


def test_a_broken_folder_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load(model=str(tmp_path))
    with pytest.raises(ConfigError, match="is no folder here"):
        dataclasses.replace(TINY, model=str(tmp_path / "absent"))


def test_the_shipped_checkpoint_is_small_and_loads_by_itself() -> None:
    from pathlib import Path

    from grpo_guard.assets import locate

    folder = Path(locate("model", "sd3_tiny"))
    assert sum(f.stat().st_size for f in folder.parent.rglob("*") if f.is_file()) < 12e6
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32)
    assert pipe(TEXTS[0], num_inference_steps=2, max_sequence_length=0, height=64, width=64).images[0].size == (64, 64)


def moved(model: SD3Model) -> None:
    with torch.no_grad():
        for p in model.policy.parameters():
            p.add_(0.02 * torch.randn_like(p)) if p.requires_grad else None


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_reference_is_the_model_as_it_was_loaded(lora: Lora | None) -> None:
    model = load(lora=lora, guidance=2.0)
    x, t, condition = torch.randn(3, *model.shape), torch.full((3,), 0.7), model.encode(TEXTS)
    reference = model.reference()
    before = model.policy(x, t, condition).detach()
    trained = [p for p in model.policy.parameters() if p.requires_grad]
    moved(model)
    assert torch.equal(reference(x, t, condition), before)
    assert not torch.allclose(model.policy(x, t, condition), before, atol=1e-4)
    assert [p for p in model.policy.parameters() if p.requires_grad] == trained


def test_a_policy_without_guidance_shares_its_weights() -> None:
    model = load(guidance=3.0)
    plain, x, t, condition = model.unguided(), torch.randn(3, *model.shape), torch.full((3,), 0.7), model.encode(TEXTS)
    moved(model)
    wanted = load(guidance=1.0)
    wanted.pipe.transformer.load_state_dict(model.pipe.transformer.state_dict())
    assert torch.equal(plain(x, t, condition), wanted.policy(x, t, condition))
