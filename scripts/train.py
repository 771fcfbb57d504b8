"""The training entrypoint: python scripts/train.py clipping=guard reward=ocr iterations=30 (--help: the choices)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import cli
from grpo_guard.checkpoint import finished
from grpo_guard.ranks import Launched, launched
from grpo_guard.report.outcome import objective
from grpo_guard.train import Experiment, train
from grpo_guard.types import RunError, require

FREE = ("iterations", "resume", "output", "strategy", "logger", "checkpoint")
"""What may differ from the run that is gone on with."""


@hydra.main(version_base="1.3", config_path=cli.CONF, config_name="train")
@cli.job
def main(cfg: DictConfig) -> float | None:
    """Check everything, then train unless that is done; returns what a search of settings maximises."""
    experiment = cli.build(cfg)
    experiment.split()
    if finished(Path(experiment.output), experiment.iterations):
        print(f"{experiment.output} is finished already; nothing to do", file=sys.stderr)
    elif isinstance(experiment.strategy, Launched) and launched() is None:
        start(experiment)
    else:
        begin(experiment, cfg)
    return objective(Path(experiment.output))


def begin(experiment: Experiment, cfg: DictConfig) -> None:
    """Claim the run folder, for all processes, and train."""
    if os.environ.get("RANK", "0") == "0":
        claim(experiment, cfg)
        print(experiment.geometry.describe(), file=sys.stderr)
    train(experiment, OmegaConf.to_container(cfg, resolve=True))


def start(experiment: Experiment) -> None:
    """Run this job on processes of this machine, as torchrun would, and end as they end."""
    given = [override for override in HydraConfig.get().overrides.task if not override.startswith("output=")]
    command = [sys.executable, sys.argv[0], *given, f"output={experiment.output}", "hydra.mode=RUN"]
    size, port = experiment.strategy.processes, free_port()
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    code = together([subprocess.Popen(command, env=environment) for environment in ranks])
    if code == cli.RESUMABLE:
        raise SystemExit(code)
    if code:
        raise RunError(f"its processes ended with code {code}")


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port: int = door.getsockname()[1]
        return port


def together(workers: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all; the first that fails ends the others. A signal to this process is passed on."""

    def tell(number: int, frame: FrameType | None) -> None:
        for worker in workers:
            worker.send_signal(number)

    handlers = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: tell, signal.SIGUSR1: tell}  # Ctrl-C reaches all anyway
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    while any(worker.poll() is None for worker in workers):
        time.sleep(0.2)
        if any(worker.poll() not in (None, 0, cli.RESUMABLE) for worker in workers):
            tell(signal.SIGKILL, None)
    for number, handler in before.items():
        signal.signal(number, handler)
    codes = [worker.wait() for worker in workers]
    return next((code for code in codes if code > 0), 1 if any(codes) else 0)


def claim(experiment: Experiment, cfg: DictConfig) -> None:
    """Make the run folder and write its config.yaml; raises ConfigError where that cannot be, or holds another run."""
    folder = Path(experiment.output)
    file = folder / "config.yaml"
    if file.exists():
        require(experiment.resume == "auto", f"output={folder} already holds a run; choose another folder")
        changed = differences(OmegaConf.load(file), cfg)
        require(
            not changed,
            f"output={folder} holds a run of other settings ({', '.join(changed)}); choose another folder, or begin"
            " there from one of its states by resume=",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
    except OSError as error:
        require(False, f"output={folder} cannot be written ({os.strerror(error.errno or 0)}); choose another folder")


def differences(before: object, now: DictConfig) -> list[str]:
    """The top-level keys that are not as they were, but for those that may differ."""
    old = OmegaConf.to_container(before)
    new = OmegaConf.to_container(now, resolve=True)
    assert isinstance(old, dict)
    assert isinstance(new, dict)
    return sorted(str(k) for k in (old.keys() | new.keys()) - {*FREE} if old.get(k) != new.get(k))


if __name__ == "__main__":
    cli.run(main)
