"""Sampling from a loaded backbone, and changing its weights, for tests."""

import re

import torch

from grpo_guard import rng
from grpo_guard.final_steps.euler import Euler
from grpo_guard.lifecycle import model_card as card
from grpo_guard.rollout import rollout
from grpo_guard.sde import schedule
from grpo_guard.sde.ode import Ode
from grpo_guard.types import Batch, Prompt

SMALL = {
    "resolution": 64, "dtype": "float32", "vae_dtype": "float32", "text_dtype": "float32",
    "microbatch": 8, "lora": None, "gradient_checkpointing": False, "prompt_cache": None,
}  # fmt: skip
"""Settings of a small backbone that all families have."""


def sample(model, texts, steps, policy=None):
    """Sample one latent per text by the ODE, from the noise of address (5, 0, row)."""
    index = torch.arange(len(texts))
    batch = Batch(
        prompts=tuple(Prompt(text=t) for t in texts), group=index, sample=index, total=len(texts)
    )
    plan, condition = schedule(Ode(), model.times(steps)), model.encode(texts)
    return rollout(
        policy or model.policy,
        plan,
        batch,
        condition,
        model.shape,
        address=(5, 0),
        microbatch=8,
        final_steps=Euler(),
    ).sample


def start(model, texts):
    """Return the noise that `sample` begins with."""
    return rng.normal(model.shape, [(5, 0, row, rng.START) for row in range(len(texts))], "cpu")


def check_ode_against_pipeline(model, texts, **arguments):
    """Check that six steps from the same noise give the latents and images of the pipeline."""
    arguments |= {"latents": start(model, texts), "num_inference_steps": 6}
    latents, images = (
        model.pipe(texts, output_type=kind, **arguments).images for kind in ("latent", "pt")
    )
    sampled = sample(model, texts, 6)
    assert (sampled - latents).abs().max() < 1e-4
    assert (model.decode(sampled) - images).abs().max() < 1e-4
    assert images.shape[2:] == (arguments["height"], arguments["width"])


def check_saved_loads_in_diffusers(load, lora, texts, folder):
    """Check that diffusers loads saved adapters, which draw the same, and a saved transformer."""
    model = load(lora=lora)
    perturb(model)
    save(model, folder)
    base = load()
    expected = sample(model, texts, 3)
    assert (sample(base, texts, 3) - expected).abs().max() > 1e-3
    base.pipe.load_lora_weights(folder / "lora")
    assert (sample(base, texts, 3) - expected).abs().max() < 1e-4
    whole = load()
    save(whole, folder)
    loaded = type(whole.pipe.transformer).from_pretrained(folder / "transformer")
    assert all(
        torch.equal(a, b)
        for a, b in zip(loaded.parameters(), whole.pipe.transformer.parameters(), strict=True)
    )


def check_another_resolution(load, lora, texts, resolution):
    """Check that a model at another resolution is the one loaded there, with the same weights."""
    model = load(lora=lora)
    resized = model.at(resolution)
    reference = resized.reference()
    own = load(lora=lora, resolution=resolution)
    unchanged = sample(own, texts, 3)
    perturb(model)
    own.pipe.transformer.load_state_dict(model.pipe.transformer.state_dict())
    expected = sample(own, texts, 3)
    assert resized.shape == own.shape != model.shape
    assert torch.equal(sample(resized, texts, 3), expected)
    assert torch.equal(resized.decode(expected), own.decode(expected))
    assert (expected - unchanged).abs().max() > 1e-3
    assert torch.equal(sample(resized, texts, 3, reference), unchanged)
    assert model.at(model.recipe.resolution) is model


def perturb(model, size=0.02):
    """Add noise to the trainable parameters."""
    with torch.no_grad():
        for p in model.policy.parameters():
            if p.requires_grad:
                p.add_(size * torch.randn_like(p))


def save(model, folder):
    """Write the trainable parameters of a model as a run writes them."""
    model.save(
        folder, {name: p.detach() for name, p in model.policy.named_parameters() if p.requires_grad}
    )


def draw_by_card(model, backbone, folder, monkeypatch):
    """Run the code on a saved model's card: latents of "a red circle" in 4 steps from `start`."""
    save(model, folder)
    config = {"backbone": backbone, "eval": {"steps": 4, "resolution": None}}
    card.write_card(config, folder, folder, 3, {})
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    monkeypatch.chdir(folder)
    variables = {"noise": rng.normal(model.shape, [(5, 0, 0, rng.START)], "cpu")}
    exec(
        code.replace("height", "latents=noise, output_type='latent', height", 1),
        variables,
    )
    return variables["image"]
