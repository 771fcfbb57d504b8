"""Pictures of a loaded backbone, and changes to it, for tests."""

import re

import torch

from grpo_guard import card, rng
from grpo_guard.rollout import rollout
from grpo_guard.sde import schedule
from grpo_guard.sde.ode import Ode
from grpo_guard.tail.euler import Euler
from grpo_guard.types import Batch, Prompt


def sample(model, texts, steps):
    """Latents of one ODE sample per text, from the noise of address (5, 0, row)."""
    index = torch.arange(len(texts))
    batch = Batch(prompts=tuple(Prompt(text=t) for t in texts), group=index, sample=index, total=len(texts))
    plan, condition = schedule(Ode(), model.times(steps)), model.encode(texts)
    return rollout(model.policy, plan, batch, condition, model.shape, address=(5, 0), microbatch=8, tail=Euler()).sample


def move(model, size=0.02):
    """Change what is trained."""
    with torch.no_grad():
        for p in model.policy.parameters():
            p.add_(size * torch.randn_like(p)) if p.requires_grad else None


def save(model, folder):
    """What is trained of a model, written as a run writes it."""
    model.save(folder, {name: p.detach() for name, p in model.policy.named_parameters() if p.requires_grad})


def drawn_by_card(model, backbone, folder, monkeypatch):
    """Latents of "a red circle" in 4 steps by the code on the card of a saved model, from the noise of (5, 0, 0)."""
    save(model, folder)
    card.write(folder / "README.md", {"backbone": backbone}, folder / "metrics.jsonl", 3)
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    monkeypatch.chdir(folder)
    found = {"noise": rng.normal(model.shape, [(5, 0, 0, rng.START)], "cpu")}
    exec(code.replace("height", "latents=noise, num_inference_steps=4, output_type='latent', height", 1), found)
    return found["image"]
