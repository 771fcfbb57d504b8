"""Pictures of a loaded backbone, and changes to it, for tests."""

import torch

from grpo_guard.rollout import rollout
from grpo_guard.sde import schedule
from grpo_guard.sde.ode import Ode
from grpo_guard.tail.euler import Euler
from grpo_guard.types import Batch, Prompt


def sample(model, texts, steps):
    """Latents of one ODE sample per text, from the noise of address (5, 0, row)."""
    index = torch.arange(len(texts))
    batch = Batch(prompts=tuple(Prompt(text=t) for t in texts), group=index, sample=index)
    plan, condition = schedule(Ode(), model.times(steps)), model.encode(texts)
    return rollout(model.policy, plan, batch, condition, model.shape, address=(5, 0), microbatch=8, tail=Euler()).sample


def move(model, size=0.02):
    """Change what is trained."""
    with torch.no_grad():
        for p in model.policy.parameters():
            p.add_(size * torch.randn_like(p)) if p.requires_grad else None
