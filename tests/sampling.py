"""Pictures of a loaded backbone, and changes to it, for tests."""

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
    "resolution": 64, "dtype": "float32", "vae_dtype": "float32", "text_dtype": "float32", "microbatch": 8,
    "lora": None, "gradient_checkpointing": False, "prompt_cache": None,
}  # fmt: skip
"""Settings of a small backbone of any family."""


def sample(model, texts, steps):
    """Latents of one ODE sample per text, from the noise of address (5, 0, row)."""
    index = torch.arange(len(texts))
    batch = Batch(
        prompts=tuple(Prompt(text=t) for t in texts), group=index, sample=index, total=len(texts)
    )
    plan, condition = schedule(Ode(), model.times(steps)), model.encode(texts)
    return rollout(
        model.policy,
        plan,
        batch,
        condition,
        model.shape,
        address=(5, 0),
        microbatch=8,
        final_steps=Euler(),
    ).sample


def start(model, texts):
    """The noise of `sample`."""
    return rng.normal(model.shape, [(5, 0, row, rng.START) for row in range(len(texts))], "cpu")


def ode_is_the_pipelines(model, texts, **asked):
    """Six steps from the same noise end in the latents and the pictures of diffusers' pipeline."""
    asked |= {"latents": start(model, texts), "num_inference_steps": 6}
    wanted, shown = (
        model.pipe(texts, output_type=kind, **asked).images for kind in ("latent", "pt")
    )
    found = sample(model, texts, 6)
    assert (found - wanted).abs().max() < 1e-4
    assert (model.decode(found) - shown).abs().max() < 1e-4
    assert shown.shape[2:] == (asked["height"], asked["width"])


def loads_in_diffusers(load, lora, texts, folder):
    """Adapters that are saved draw in diffusers what the run draws; a transformer that is saved has its weights."""
    model = load(lora=lora)
    move(model)
    save(model, folder)
    base = load()
    wanted = sample(model, texts, 3)
    assert (sample(base, texts, 3) - wanted).abs().max() > 1e-3
    base.pipe.load_lora_weights(folder / "lora")
    assert (sample(base, texts, 3) - wanted).abs().max() < 1e-4
    whole = load()
    save(whole, folder)
    kept = type(whole.pipe.transformer).from_pretrained(folder / "transformer")
    assert all(
        torch.equal(a, b)
        for a, b in zip(kept.parameters(), whole.pipe.transformer.parameters(), strict=True)
    )


def move(model, size=0.02):
    """Change what is trained."""
    with torch.no_grad():
        for p in model.policy.parameters():
            p.add_(size * torch.randn_like(p)) if p.requires_grad else None


def save(model, folder):
    """What is trained of a model, written as a run writes it."""
    model.save(
        folder, {name: p.detach() for name, p in model.policy.named_parameters() if p.requires_grad}
    )


def drawn_by_card(model, backbone, folder, monkeypatch):
    """Latents of "a red circle" in 4 steps by the code on the card of a saved model, from the noise of (5, 0, 0)."""
    save(model, folder)
    card.write(folder / "README.md", {"backbone": backbone}, folder / "metrics.jsonl", 3)
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    monkeypatch.chdir(folder)
    found = {"noise": rng.normal(model.shape, [(5, 0, 0, rng.START)], "cpu")}
    exec(
        code.replace(
            "height", "latents=noise, num_inference_steps=4, output_type='latent', height", 1
        ),
        found,
    )
    return found["image"]
