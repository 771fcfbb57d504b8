"""A training loop that can resume, and its optimizers."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from tiny.pictures import DEVICE

console = Console(stderr=True)


def cosine(step: int, steps: int, warmup: int = 200) -> float:
    """Return the factor of the learning rate: linear warm-up, then a half cosine down to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def adamw(module: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Make AdamW with the usual settings for transformers."""
    return torch.optim.AdamW(module.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)


class Muon(torch.optim.Optimizer):
    """Makes the momentum of hidden matrices orthogonal; uses AdamW for all other parameters.

    `is_hidden(name)` chooses the matrices. torch.optim.Muon works matrix by matrix in bfloat16,
    which on a CPU takes longer than the gradient itself; this stacks matrices of one shape and
    computes in float32.
    """

    def __init__(
        self,
        module: nn.Module,
        is_hidden: Callable[[str], bool],
        lr: float,
        weight_decay: float = 0.01,
    ) -> None:
        named = list(module.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and is_hidden(name)]
        shapes = sorted({tuple(p.shape) for p in matrices})
        groups = [{"params": [p for p in matrices if p.shape == shape]} for shape in shapes]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        chosen = set(matrices)
        rest = [p for _, p in named if p not in chosen]
        self.rest = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Take a step with both optimizers."""
        for group in self.param_groups:
            parameters, lr = group["params"], group["lr"]
            gradient = torch.stack([p.grad for p in parameters])
            momentum = self.state[parameters[0]].setdefault("momentum", torch.zeros_like(gradient))
            momentum.lerp_(gradient, 0.05)
            # The scale gives updates the size of AdamW's, so that both share a learning rate.
            scale = math.sqrt(max(gradient.shape[1:]))
            update = orthogonalize(gradient.lerp(momentum, 0.95)) * 0.2 * scale
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


def orthogonalize(x: Tensor) -> Tensor:
    """Return nearly the nearest orthogonal matrices of a batch (N, M, K).

    Takes five steps of the quintic Newton-Schulz iteration, with the coefficients of Muon.
    """
    if x.shape[1] > x.shape[2]:
        return orthogonalize(x.mT).mT
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
    """Train `module` on `loss(step)` and return its exponential moving average.

    Resumes from `work/name.pt`. Every `every` steps, saves the state and appends step, seconds,
    loss and `evaluate(average)` to `work/name.jsonl`.
    """
    state_file = work / f"{name}.pt"
    average = copy.deepcopy(module).requires_grad_(False)
    start, seconds = load_state(state_file, module, average, optimizer)
    began = time.perf_counter() - seconds
    recent = 0.0  # running mean of the loss over about 100 steps
    for step in track(range(start, steps), name, console=console):
        value = train_step(module, optimizer, loss, step, steps)
        decay = min(ema, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
        recent += (value - recent) / min(step - start + 1, 100)
        if (step + 1) % every == 0 or step + 1 == steps:
            seconds = time.perf_counter() - began
            save_state(state_file, module, average, optimizer, step + 1, seconds)
            row = {"step": step + 1, "seconds": seconds, "loss": recent, **evaluate(average)}
            with (work / f"{name}.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            console.print(name, {key: round(value, 4) for key, value in row.items()})
    return average


def train_step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[int], Tensor],
    step: int,
    steps: int,
) -> float:
    """Take one step on the loss, and return it."""
    for group in optimizer.param_groups:
        group["lr"] = optimizer.defaults["lr"] * cosine(step, steps)
    value = loss(step)
    value.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return value.item()


def load_state(
    file: Path, module: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """Load a training state if there is one; return its number of steps and seconds, else 0."""
    if not file.exists():
        return 0, 0.0
    state = torch.load(file, map_location=DEVICE)
    module.load_state_dict(state["module"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"]


def save_state(
    file: Path,
    module: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
) -> None:
    """Write a training state; an interruption leaves the one before it whole."""
    state = {
        "module": module.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    torch.save(state, file.with_suffix(".tmp"))
    os.replace(file.with_suffix(".tmp"), file)
