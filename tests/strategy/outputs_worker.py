"""One of two ranks that differ: in `output`, in a file of prompts, and only rank 1 is stopped."""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from toy import ADAPTIVE, Data, experiment

import grpo_guard.train
from grpo_guard.lifecycle.stop import Stopped
from grpo_guard.schema import ConfigError, component
from grpo_guard.strategy.ddp import Ddp
from grpo_guard.train import iterate, train

RANK = os.environ["RANK"]


@component
class OwnFile(Data):
    """Prompts from a file of which each rank has its own copy; that of rank 1 was edited."""

    def load(self):
        split = Data.load(self)
        if RANK == "1":
            split = dataclasses.replace(split, train=(*split.train[1:], split.train[0]))
        return dataclasses.replace(split, files="data.path=own.txt")


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
    other = folder / "other_prompts"
    other.mkdir(exist_ok=True)
    exp = dataclasses.replace(exp, data=OwnFile(), output=str(other), iterations=1)
    grpo_guard.train.iterate = iterate
    refusal = None
    try:
        train(exp, {})
    except ConfigError as error:
        refusal = str(error)
    (folder / f"refusal_{RANK}.json").write_text(json.dumps(refusal))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
