"""The run that tests kill and resume, in a module that a new process can import."""

from toy import ADAPTIVE, Grey, experiment

from grpo_guard.ema.average import Average
from grpo_guard.schema import component
from grpo_guard.train import train

AVERAGE = Average(decay=0.9, every=1, on_cpu=True)


def run(folder, **changes):
    """Train six iterations with everything that a state must hold."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"iterations": 6, "clipping": ADAPTIVE, "ema": AVERAGE} | changes
    train(experiment(folder, **settings), {})


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
