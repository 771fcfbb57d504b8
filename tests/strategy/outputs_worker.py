"""A rank whose `output` resolves differently from that of the other ranks: trains, then resumes."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import dataclasses

from toy import experiment

from grpo_guard.strategy.ddp import Ddp
from grpo_guard.train import train


def main(folder):
    """Train two iterations into this rank's own output, then one more from the state."""
    strategy = Ddp(processes=2, timeout=60.0, threads=1)
    output = folder / f"run_{os.environ['RANK']}"
    exp = experiment(output, strategy=strategy, microbatch=8, iterations=2)
    if os.environ["RANK"] == "0":
        output.mkdir()  # scripts/train.py claims the folder of rank 0 alone
    train(exp, {})
    train(dataclasses.replace(exp, iterations=3), {})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
