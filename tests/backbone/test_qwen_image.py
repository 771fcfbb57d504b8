"""Qwen-Image against diffusers' own pipeline, on a small checkpoint with random weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from sampling import (
    SMALL,
    check_another_resolution,
    check_ode_against_pipeline,
    check_saved_loads_in_diffusers,
    draw_by_card,
    perturb,
    sample,
    save,
    start,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from grpo_guard.backbone.lora import Lora
from grpo_guard.backbone.qwen_image import QwenImage
from grpo_guard.schema import ConfigError

TEXTS = ["a red circle", 'two blue squares above the word "stop"']
LORA = Lora(rank=4, alpha=8, targets=["attn.to_q", "attn.add_q_proj"])
HEAD = (
    "system Describe the image by detailing the color, shape, size, texture, quantity, text,"
    " spatial relationships of the objects and background user assistant"
)
MARKS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|video_pad|>"]


def tokenizer():
    """Make a tokenizer of bytes in which, as published, each word of the template is one token."""
    words = ["Ġ" + word if row else word for row, word in enumerate(HEAD.replace(",", "").split())]
    words += [
        word.removeprefix("Ġ") for word in words if word[1:] in ("Describe", "user", "assistant")
    ]
    merges = list(dict.fromkeys((word[:i], word[i]) for word in words for i in range(1, len(word))))
    pieces = dict.fromkeys(
        ["<|endoftext|>", *sorted(ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    )
    result = Qwen2Tokenizer(vocab={piece: row for row, piece in enumerate(pieces)}, merges=merges)
    result.add_special_tokens({"additional_special_tokens": MARKS})
    return result


def text_encoder(words):
    """Make a small Qwen2.5-VL, with the smallest possible vision tower."""
    start, _, vision, image, video = words.convert_tokens_to_ids(MARKS)
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 64,
                "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
                "max_position_embeddings": 2048,
                "rope_parameters": {
                    "rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4,
                },
                "bos_token_id": start, "eos_token_id": 0,
            },
            vision_config={
                "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 1,
                "out_hidden_size": 32,
            },
            vision_start_token_id=vision, image_token_id=image, video_token_id=video,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Save a small QwenImagePipeline: 64 px, 4 x 4 tokens of 16 numbers, the published shift."""
    torch.manual_seed(0)
    words = tokenizer()
    pipe = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192,
            shift_terminal=0.02
        ),
        vae=AutoencoderKLQwenImage(
            base_dim=4, z_dim=4, num_res_blocks=1, latents_mean=[-0.7, 0.1, 0.9, 0.3],
            latents_std=[2.8, 1.4, 0.6, 1.9]
        ),
        text_encoder=text_encoder(words),
        tokenizer=words,
        transformer=QwenImageTransformer2DModel(
            in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(4, 6, 6),
        ),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("qwen_image")
    pipe.save_pretrained(path)
    return str(path)


@pytest.fixture
def load(folder):
    tiny = QwenImage(model=folder, guidance=4.0, prompt_tokens=128, **SMALL)
    return lambda **changes: dataclasses.replace(tiny, **changes).load(torch.device("cpu"))


def call_arguments(guidance, resolution=64):
    """Return the arguments with which the pipeline draws TEXTS under a guidance."""
    guided = (
        {"true_cfg_scale": guidance, "negative_prompt": [" "] * len(TEXTS)} if guidance > 1 else {}
    )
    size = {"height": resolution, "width": resolution}
    return size | guided | {"max_sequence_length": 128}


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("resolution", [64, 96])
def test_ode_is_the_pipeline(guidance, resolution, load):
    check_ode_against_pipeline(
        load(guidance=guidance, resolution=resolution),
        TEXTS,
        **call_arguments(guidance, resolution),
    )


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_every_velocity_is_the_pipelines(guidance, load, check_velocities_against_pipeline):
    check_velocities_against_pipeline(load(guidance=guidance), TEXTS, **call_arguments(guidance))


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_prompts_velocity_depends_on_no_other_prompt(guidance, load):
    model = load(guidance=guidance)
    x, t, together = start(model, TEXTS), torch.tensor([0.9, 0.4]), model.encode(TEXTS)
    assert together.mask.sum(1).tolist() == [model.encode([text]).tokens.shape[1] for text in TEXTS]
    for row, text in enumerate(TEXTS):
        alone = model.policy(x[row : row + 1], t[row : row + 1], model.encode([text]))
        assert (model.policy(x, t, together)[row] - alone[0]).abs().max() < 1e-5
    blind = dataclasses.replace(together, mask=None)
    assert (model.policy(x, t, blind) - model.policy(x, t, together))[0].abs().max() > 1e-3


def test_guidance_turns_velocities_and_keeps_their_norm(load):
    model = load()
    x, t, condition = start(model, TEXTS), torch.tensor([0.9, 0.4]), model.encode(TEXTS)
    plain, guided = (policy(x, t, condition) for policy in (model.unguided(), model.policy))
    assert torch.allclose(guided.norm(dim=-1), plain.norm(dim=-1), rtol=1e-5)
    assert (guided - plain).abs().max() > 1e-2


@pytest.mark.parametrize("lora", [None, LORA])
def test_another_resolution_is_the_same_model(load, lora):
    check_another_resolution(load, lora, TEXTS, 96)


def test_what_is_saved_loads_in_diffusers(load, tmp_path):
    check_saved_loads_in_diffusers(load, LORA, TEXTS, tmp_path)


@pytest.mark.parametrize("lora", [None, LORA])
def test_what_is_saved_is_restored(lora, load, tmp_path):
    model, other = load(lora=lora), load(lora=lora)
    perturb(model)
    save(model, tmp_path)
    other.restore(tmp_path)
    assert torch.equal(sample(other, TEXTS, 2), sample(model, TEXTS, 2))


def test_the_code_on_a_model_card_draws_the_same(load, tmp_path, monkeypatch):
    model = load(lora=LORA)
    perturb(model)
    backbone = dataclasses.asdict(model.recipe) | {
        "_target_": "grpo_guard.backbone.qwen_image.QwenImage"
    }
    drawn = draw_by_card(model, backbone, tmp_path, monkeypatch)
    assert (drawn - sample(model, ["a red circle"], 4)).abs().max() < 1e-4


def test_cached_prompts_are_not_encoded_again(load, tmp_path):
    expected = load(prompt_cache=str(tmp_path)).encode(TEXTS)
    model = load(prompt_cache=str(tmp_path))
    model.embed = lambda texts: pytest.fail(f"{texts} are encoded again")
    cached = model.encode(TEXTS)
    assert torch.equal(cached.tokens, expected.tokens)
    assert torch.equal(cached.mask, expected.mask)


def test_half_precision_and_checkpointing_change_gradients_little(load):
    torch.manual_seed(1)
    whole, half = load(lora=LORA), load(lora=LORA, dtype="bfloat16", gradient_checkpointing=True)
    half.policy.load_state_dict(whole.policy.state_dict())
    x, t, condition = start(whole, TEXTS), torch.tensor([0.9, 0.4]), whole.encode(TEXTS)
    for model in (whole, half):
        model.policy(x, t, condition).float().square().mean().backward()
    a, b = (
        torch.cat([p.grad.flatten() for p in m.policy.parameters() if p.requires_grad])
        for m in (whole, half)
    )
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.98
    assert {p.dtype for p in half.policy.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"guidance": 0.5}, "guidance=0.5 is below 1; give 1 for no"),
        ({"resolution": 72}, "resolution=72 is no multiple of 16; give one that is"),
        ({"prompt_tokens": 2048}, "prompt_tokens=2048 is outside 1..1024; 512 is usual"),
        (
            {"model": "sd3_tiny"},
            "is a StableDiffusion3Pipeline, not a QwenImagePipeline; choose the",
        ),
    ],
)
def test_unusable_settings_are_refused_in_one_line(changes, line, load):
    with pytest.raises(ConfigError, match=line) as error:
        load(**changes)
    assert "\n" not in str(error.value)


def test_a_long_prompt_is_cut(load):
    whole, cut = (load(prompt_tokens=tokens).encode([TEXTS[1]]).tokens for tokens in (128, 9))
    assert torch.equal(cut, whole[:, :9])
    assert whole.shape[1] > 9
