"""The run that tests kill and resume, in a module that a new process can import."""

import torch
from toy import ADAPTIVE, Grey, experiment

from grpo_guard.ema.average import Average
from grpo_guard.lifecycle.checkpoint import Checkpoints, CheckpointWriter
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.schema import component
from grpo_guard.train import train

AVERAGE = Average(decay=0.9, every=1, on_cpu=True)


def run(folder, **changes):
    """Train six iterations with everything that a state must hold."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"iterations": 6, "clipping": ADAPTIVE, "ema": AVERAGE} | changes
    train(experiment(folder, **settings), {})


def make_writer(folder, best=None, export=lambda folder: None):
    """Make the writer of a run of one process, which saves and waits for it."""
    recipe = Checkpoints(every=1, keep=2, export_every=2, best=best, asynchronous=False)
    cpu = Ranks(device=torch.device("cpu"))
    return CheckpointWriter(recipe, folder, cpu, export, lambda *_: None, best=None, start=0)


@component
class Saboteur(Grey):
    """Scores as Grey does, and does something first when it scores for the tenth time."""

    act: object
    """What it does."""

    def load(self, device):
        score = super().load(device)
        count = iter(range(1000))

        def sabotage(images, prompts):
            if next(count) == 9:
                self.act()
            return score(images, prompts)

        return sabotage
