"""Is the clip range above the noise floor? python scripts/preflight.py <the overrides of train.py>

Draws samples as training does, replays them without any update, and prints how far from 1 the
ratios already are: in the microbatches of training, one row at a time, with latents stored in half
precision, and without guidance. In half precision it then moves the weights by one optimizer step,
and prints how much of the ratio is rounding.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from grpo_guard.console import cli
from grpo_guard.console.announcing import announce


@hydra.main(version_base="1.3", config_path=cli.CONF, config_name="train")
@cli.job
def main(cfg: DictConfig) -> None:
    """Measure the floor under each condition and print what to change."""
    announce()
    from grpo_guard.command.noise_floors import measure_and_print

    measure_and_print(cfg)


def start() -> None:
    """Run the command line."""
    cli.run(main, "preflight")


if __name__ == "__main__":
    start()
