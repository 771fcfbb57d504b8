"""SD3 against diffusers' own pipeline, on the shipped checkpoint."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import httpx2
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from sampling import (
    SMALL,
    check_another_resolution,
    check_ode_against_pipeline,
    check_saved_loads_in_diffusers,
    perturb,
    sample,
    save,
)

from grpo_guard import rng
from grpo_guard.assets import locate
from grpo_guard.backbone.lora import Lora
from grpo_guard.backbone.sd3 import SD3, SD3Model
from grpo_guard.messages import warn_once
from grpo_guard.schema import ConfigError

TINY = SD3(model="sd3_tiny", guidance=1.0, t5_tokens=0, **SMALL)
TEXTS = ["a red circle", 'the word "stop"', "two blue squares"]
LORA = Lora(rank=4, alpha=8, targets=["attn.to_q", "attn.add_q_proj"])


def load(**changes: object) -> SD3Model:
    return dataclasses.replace(TINY, **changes).load(torch.device("cpu"))


@pytest.fixture(scope="module")
def tiny() -> SD3Model:
    return load()


def call_arguments(guidance: float) -> dict[str, object]:
    """Return the arguments with which the pipeline draws under a guidance."""
    return {"guidance_scale": guidance, "max_sequence_length": 0, "height": 64, "width": 64}


def test_prompts_that_are_too_long_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """The libraries say it several times for each prompt and each encoder."""
    warn_once.cache_clear()
    libraries = [logging.getLogger("diffusers"), logging.getLogger("transformers")]
    for logger in libraries:
        logger.addHandler(caplog.handler)
    try:
        load().embed(["word " * 100, "picture " * 100])
    finally:
        for logger in libraries:
            logger.removeHandler(caplog.handler)
    (line,) = caplog.messages
    assert line.startswith("some prompts are longer than a text encoder reads; the rest")


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_ode_is_the_pipeline(guidance: float) -> None:
    check_ode_against_pipeline(load(guidance=guidance), TEXTS, **call_arguments(guidance))


@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize("text", TEXTS)
def test_every_velocity_is_the_pipelines(
    guidance: float, text: str, check_velocities_against_pipeline
) -> None:
    """One prompt at a time, because the pipeline encodes prompts in a batch, which rounds them."""
    check_velocities_against_pipeline(load(guidance=guidance), [text], **call_arguments(guidance))


def test_images_are_the_pipelines(tiny: SD3Model) -> None:
    latents = sample(tiny, TEXTS, 4)
    vae = tiny.pipe.vae
    rescaled = latents / vae.config.scaling_factor + vae.config.shift_factor
    expected = tiny.pipe.image_processor.postprocess(vae.decode(rescaled).sample, output_type="pt")
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
    assert torch.equal(sample(model, TEXTS, 2), sample(tiny, TEXTS, 2))


@pytest.mark.parametrize("lora", [None, LORA])
def test_another_resolution_is_the_same_model(lora: Lora | None) -> None:
    check_another_resolution(load, lora, TEXTS, 32)


def test_what_is_saved_loads_in_diffusers(tmp_path) -> None:
    check_saved_loads_in_diffusers(load, LORA, TEXTS, tmp_path)


@pytest.mark.parametrize("lora", [None, LORA])
def test_what_is_saved_is_restored(lora: Lora | None, tmp_path) -> None:
    model, other = load(lora=lora), load(lora=lora)
    perturb(model)
    save(model, tmp_path)
    other.restore(tmp_path)
    assert torch.equal(sample(other, TEXTS, 2), sample(model, TEXTS, 2))


def test_a_checkpoint_of_another_backbone_is_not_restored(tmp_path) -> None:
    save(load(lora=LORA), tmp_path)
    with pytest.raises(ConfigError, match=r"does not fit this backbone|holds other adapters"):
        load().restore(tmp_path)
    with pytest.raises(ConfigError, match=r"does not fit this backbone|holds other adapters"):
        load(lora=dataclasses.replace(LORA, rank=8)).restore(tmp_path)
    with pytest.raises(ConfigError, match="holds other adapters"):
        load(lora=dataclasses.replace(LORA, targets=["attn.to_k"])).restore(tmp_path)


def test_a_target_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"targets=\['attn.nothing'\] match no module"):
        load(lora=Lora(rank=4, alpha=8, targets=["attn.nothing"]))


def test_a_gated_model_is_named_as_gated(monkeypatch) -> None:
    """diffusers reports a model as unknown if its licence has not been accepted."""

    def refuse(*_, **__) -> None:
        answer = httpx2.Response(403, request=httpx2.Request("GET", "https://hub"))
        try:
            raise GatedRepoError("403", response=answer)
        except GatedRepoError:
            raise OSError("org/name is not a valid model identifier")  # noqa: B904

    monkeypatch.setattr(TINY.pipeline_class, "load_config", refuse)
    with pytest.raises(ConfigError, match=r"^backbone.model=org/name is gated; accept its licence"):
        load(model="org/name")


def drop_connection(*_, **__) -> None:
    raise httpx2.RemoteProtocolError("peer closed connection")


def miss_in_cache(*_, **__) -> None:
    """Fail as diffusers does if the hub is unreachable and nothing is in its cache."""
    try:
        drop_connection()
    except httpx2.HTTPError as error:
        try:
            raise LocalEntryNotFoundError("check your connection") from error
        except LocalEntryNotFoundError:
            raise OSError("org/name does not appear to have a model_index.json")  # noqa: B904


@pytest.mark.parametrize("fail", [drop_connection, miss_in_cache])
def test_a_hub_without_an_answer_is_named(fail, monkeypatch) -> None:
    monkeypatch.setattr(TINY.pipeline_class, "load_config", fail)
    message = r"^backbone.model=org/name is not on this machine, .* \(peer closed connection\)"
    with pytest.raises(ConfigError, match=message):
        load(model="org/name")


def test_an_error_without_words_is_named_by_its_type(monkeypatch) -> None:
    def fail(*_, **__) -> None:
        raise OSError

    monkeypatch.setattr(TINY.pipeline_class, "load_config", fail)
    with pytest.raises(ConfigError, match=r"^backbone.model=org/name cannot be loaded \(OSError\)"):
        load(model="org/name")


def test_a_broken_folder_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load(model=str(tmp_path))
    with pytest.raises(ConfigError, match="is no folder here"):
        dataclasses.replace(TINY, model=str(tmp_path / "absent"))


def test_the_shipped_checkpoint_is_small_and_loads_by_itself() -> None:
    folder = Path(locate("model", "sd3_tiny"))
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 12e6
    pipe = StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    assert pipe(TEXTS[0], num_inference_steps=2, max_sequence_length=0, height=64, width=64).images[
        0
    ].size == (64, 64)


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_reference_is_the_model_as_it_was_loaded(lora: Lora | None) -> None:
    model = load(lora=lora, guidance=2.0)
    x, t, condition = torch.randn(3, *model.shape), torch.full((3,), 0.7), model.encode(TEXTS)
    reference = model.reference()
    before = model.policy(x, t, condition).detach()
    trained = [p for p in model.policy.parameters() if p.requires_grad]
    perturb(model)
    assert torch.equal(reference(x, t, condition), before)
    assert not torch.allclose(model.policy(x, t, condition), before, atol=1e-4)
    assert [p for p in model.policy.parameters() if p.requires_grad] == trained


def test_a_policy_without_guidance_shares_its_weights() -> None:
    model = load(guidance=3.0)
    plain = model.unguided()
    x, t, condition = torch.randn(3, *model.shape), torch.full((3,), 0.7), model.encode(TEXTS)
    perturb(model)
    unguided = load(guidance=1.0)
    unguided.pipe.transformer.load_state_dict(model.pipe.transformer.state_dict())
    assert torch.equal(plain(x, t, condition), unguided.policy(x, t, condition))


def gradients(model: SD3Model) -> list[torch.Tensor]:
    """Return the gradients of the mean velocity along a fixed direction."""
    x, t = rng.normal((2, 3, *model.shape), [(1,)], "cpu")[0], torch.tensor([0.9, 0.5, 0.2])
    (model.policy(x[0], t, model.encode(TEXTS)).float() * x[1]).mean().backward()
    return [p.grad for p in model.policy.parameters() if p.requires_grad]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_what_is_trained_stays_in_float32_while_the_policy_computes_in_half(
    dtype: str, lora: Lora | None
) -> None:
    half, whole = (load(dtype=name, lora=lora, guidance=2.0) for name in (dtype, "float32"))
    perturb(half)
    whole.policy.load_state_dict(half.policy.state_dict())
    frozen = {p.dtype for p in half.policy.parameters() if not p.requires_grad}
    assert {p.dtype for p in half.policy.parameters() if p.requires_grad} == {torch.float32}
    assert frozen == ({getattr(torch, dtype)} if lora else set())
    x, t, condition = torch.randn(3, *half.shape), torch.tensor([0.9, 0.5, 0.2]), half.encode(TEXTS)
    assert half.policy(x, t, condition).dtype == getattr(torch, dtype)
    a, b = (torch.cat([g.flatten() for g in gradients(model)]) for model in (half, whole))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.98


def test_parts_have_their_own_dtypes() -> None:
    model = load(dtype="bfloat16", text_dtype="float16", lora=LORA)
    assert model.pipe.vae.dtype == torch.float32
    assert model.pipe.text_encoder.dtype == torch.float16
    assert model.decode(sample(model, TEXTS, 2)).dtype == torch.float32


def test_checkpointing_changes_no_gradient() -> None:
    plain, checkpointed = (load(lora=LORA, gradient_checkpointing=on) for on in (False, True))
    checkpointed.pipe.transformer.load_state_dict(plain.pipe.transformer.state_dict())
    assert checkpointed.pipe.transformer.is_gradient_checkpointing
    for a, b in zip(gradients(plain), gradients(checkpointed), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-9)


def test_cached_prompts_are_not_encoded_again(tmp_path, tiny: SD3Model) -> None:
    expected = tiny.encode(TEXTS)
    load(prompt_cache=str(tmp_path)).encode(TEXTS)
    model = load(prompt_cache=str(tmp_path))
    model.embed = lambda texts: pytest.fail(f"{texts} are encoded again")
    cached = model.encode(TEXTS)
    assert torch.equal(cached.tokens, expected.tokens)
    assert torch.equal(cached.pooled, expected.pooled)


def test_a_prompts_encoding_depends_on_no_other_prompt(tiny: SD3Model) -> None:
    assert torch.equal(tiny.encode(TEXTS).tokens[1], tiny.encode(TEXTS[1:2]).tokens[0])


@pytest.fixture
def copy(tmp_path):
    """A copy of the shipped checkpoint that a test may damage."""
    return Path(shutil.copytree(locate("model", "sd3_tiny"), tmp_path / "copy"))


def edit_index(copy: Path, **changes: object) -> None:
    file = copy / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("resolution", [32, 64])
def test_a_shift_by_the_number_of_tokens_is_the_pipelines(resolution: int, copy) -> None:
    """Some checkpoints of SD3 shift their times by the number of tokens, as FLUX.1 does."""
    file = copy / "scheduler/scheduler_config.json"
    changes = {"use_dynamic_shifting": True, "base_image_seq_len": 16}
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    model = load(model=str(copy), resolution=resolution)
    side = {"height": resolution, "width": resolution}
    check_ode_against_pipeline(model, TEXTS, **(call_arguments(1.0) | side))
    assert not torch.equal(model.times(6), load().times(6))


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (
            lambda c: edit_index(c, _class_name="FluxPipeline"),
            "is a FluxPipeline, not a StableDiffusion3Pipeline; choose",
        ),
        (lambda c: edit_index(c, vae=[None, None]), "has no vae; give a complete diffusers folder"),
        (
            lambda c: shutil.rmtree(c / "transformer"),
            "cannot be loaded .*; give a folder with model_index.json, .*vae",
        ),
        (lambda c: truncate_weights(c / "transformer"), "cannot be loaded .*; give a folder with"),
        (lambda c: widen_config(c / "transformer"), "cannot be loaded .*; give a folder with"),
    ],
)
def test_an_unusable_checkpoint_is_refused_in_one_line(damage, line, copy) -> None:
    damage(copy)
    with pytest.raises(ConfigError, match=line) as error:
        load(model=str(copy))
    assert "\n" not in str(error.value)


def truncate_weights(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])


def widen_config(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"caption_projection_dim": 48}))


@pytest.mark.parametrize("resolution", [72, 512])
def test_a_picture_larger_than_the_model_was_made_for_is_refused(resolution) -> None:
    with pytest.raises(ConfigError, match=f"resolution={resolution} does not fit.*at most 64"):
        load(resolution=resolution)
