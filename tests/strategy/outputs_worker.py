"""One of two ranks that differ: in `output`, and only rank 1 receives a signal to stop."""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from toy import ADAPTIVE, experiment

import grpo_guard.train
from grpo_guard.lifecycle.stop import Stopped
from grpo_guard.strategy.ddp import Ddp
from grpo_guard.train import iterate, train

RANK = os.environ["RANK"]


def iterate_and_stop(session, iteration):
    """Iterate; rank 1 alone sends itself SIGTERM before iteration 1."""
    if iteration == 1 and RANK == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return iterate(session, iteration)


def main(folder):
    """Train two iterations into this rank's own output, resume, and then stop another run."""
    strategy = Ddp(processes=2, timeout=60.0, threads=1)
    output = folder / f"run_{RANK}"
    exp = experiment(output, strategy=strategy, microbatch=8, iterations=2, clipping=ADAPTIVE)
    if RANK == "0":
        output.mkdir()  # scripts/train.py claims the folder of rank 0 alone
    train(exp, {})
    train(dataclasses.replace(exp, iterations=3), {})
    stopped = folder / "stopped"
    stopped.mkdir(exist_ok=True)
    grpo_guard.train.iterate = iterate_and_stop
    message = None
    try:
        train(dataclasses.replace(exp, output=str(stopped), iterations=4), {})
    except Stopped as error:
        message = str(error)
    (folder / f"message_{RANK}.json").write_text(json.dumps(message))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
