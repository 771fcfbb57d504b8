"""The run that tests kill and resume, in a module that a new process can import."""

from toy import experiment

from grpo_guard.clipping.clip import Clip
from grpo_guard.clipping.target_fraction import TargetFraction
from grpo_guard.clipping.weight import inverse_dt
from grpo_guard.ema.average import Average
from grpo_guard.ratio import log_ratio_norm
from grpo_guard.train import train

ADAPTIVE = Clip(
    name="adaptive",
    ratio=log_ratio_norm,
    weight=inverse_dt,
    adaptation=TargetFraction(fraction=0.3, per_step=True, memory=0.5),
    high=2e-6,
    low=2e-6,
)
AVERAGE = Average(decay=0.9, every=1, on_cpu=True)


def run(folder, **changes):
    """Train six iterations with everything that a state must hold."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"iterations": 6, "clipping": ADAPTIVE, "ema": AVERAGE} | changes
    train(experiment(folder, **settings), {})
