"""FLUX.1 against diffusers' own pipeline, on a small checkpoint with random weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from sampling import (
    SMALL,
    check_another_resolution,
    check_ode_against_pipeline,
    check_saved_loads_in_diffusers,
    draw_by_card,
    perturb,
    sample,
    start,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from grpo_guard.assets import locate
from grpo_guard.backbone.flux import Flux
from grpo_guard.backbone.lora import Lora
from grpo_guard.schema import ConfigError

TEXTS = ["a red circle", 'the word "stop"']
LORA = Lora(rank=4, alpha=8, targets=["attn.to_q", "attn.add_q_proj"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Save a small FluxPipeline: 64 px, 4 x 4 tokens of 16 numbers, with a dynamic shift."""
    torch.manual_seed(0)
    clip = CLIPTokenizer.from_pretrained(locate("model", "sd3_tiny"), subfolder="tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(clip), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16, eos_token_id=len(clip) - 1,
        bos_token_id=len(clip) - 2,
    )  # fmt: skip
    letters = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((c, -3.0) for c in "\u2581abcdefghijklmnopqrstuvwxyz"),
    ]
    t5 = T5Config(
        vocab_size=160,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
        ),
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(4, 4, 4, 4), layers_per_block=1, latent_channels=4,
            norm_num_groups=1, sample_size=64, scaling_factor=0.4, shift_factor=0.1,
            use_quant_conv=False, use_post_quant_conv=False,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=clip,
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=T5Tokenizer(vocab=letters),
        transformer=FluxTransformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
            guidance_embeds=True, axes_dims_rope=(4, 4, 8),
        ),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("flux")
    pipe.save_pretrained(path)
    return str(path)


@pytest.fixture
def load(folder):
    tiny = Flux(model=folder, guidance=3.5, t5_tokens=12, **SMALL)
    return lambda **changes: dataclasses.replace(tiny, **changes).load(torch.device("cpu"))


def call_arguments(guidance, resolution=64):
    """Return the arguments with which the pipeline draws under a guidance."""
    return {
        "guidance_scale": guidance,
        "max_sequence_length": 12,
        "height": resolution,
        "width": resolution,
    }


@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize("resolution", [64, 96])
def test_ode_is_the_pipeline(guidance, resolution, load):
    check_ode_against_pipeline(
        load(guidance=guidance, resolution=resolution),
        TEXTS,
        **call_arguments(guidance, resolution),
    )


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_every_velocity_is_the_pipelines(guidance, load, check_velocities_against_pipeline):
    check_velocities_against_pipeline(load(guidance=guidance), TEXTS, **call_arguments(guidance))


def test_guidance_is_an_input(load):
    assert (sample(load(), TEXTS, 4) - sample(load(guidance=1.0), TEXTS, 4)).abs().max() > 1e-4


@pytest.mark.parametrize("lora", [None, LORA])
def test_another_resolution_is_the_same_model(load, lora):
    check_another_resolution(load, lora, TEXTS, 96)


def test_what_is_saved_loads_in_diffusers(load, tmp_path):
    check_saved_loads_in_diffusers(load, LORA, TEXTS, tmp_path)


def test_the_code_on_a_model_card_draws_the_same(load, tmp_path, monkeypatch):
    model = load(lora=LORA)
    perturb(model)
    backbone = dataclasses.asdict(model.recipe) | {"_target_": "grpo_guard.backbone.flux.Flux"}
    drawn = draw_by_card(model, backbone, tmp_path, monkeypatch)
    assert (drawn - sample(model, ["a red circle"], 4)).abs().max() < 1e-4


def test_settings_out_of_range_are_refused(load):
    with pytest.raises(ConfigError, match=r"guidance=-1.0 is negative"):
        load(guidance=-1.0)
    with pytest.raises(ConfigError, match="resolution=72 is no multiple of 16"):
        load(resolution=72)


def test_the_shipped_checkpoint_is_small_and_draws_what_the_pipeline_draws(load):
    """Plain diffusers draws it with its own schedule and guidance, from the same noise."""
    shipped = locate("model", "flux_tiny")
    assert sum(file.stat().st_size for file in Path(shipped).rglob("*") if file.is_file()) < 12e6
    model = load(model=shipped)
    latents = FluxPipeline.from_pretrained(shipped, dtype=torch.float32)(
        TEXTS,
        num_inference_steps=4,
        latents=start(model, TEXTS),
        output_type="latent",
        **call_arguments(3.5),
    ).images
    assert (sample(model, TEXTS, 4) - latents).abs().max() < 1e-4
