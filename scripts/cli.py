"""What the scripts share: composing through Hydra, and one line instead of a traceback for anything a user can mend."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from grpo_guard.train import Experiment, RunError
from grpo_guard.types import ConfigError

ROOT = Path(__file__).resolve().parent.parent
CONF = str(ROOT / "conf")
MISTAKES = (ConfigError, HydraException, OmegaConfBaseException)


def job_number() -> str:
    """ "_3" for the third job of a multirun, nothing for a single run."""
    multirun = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    return f"_{HydraConfig.get().job.num}" if multirun else ""


OmegaConf.register_new_resolver("job_number", job_number, replace=True)


def build(cfg: DictConfig) -> Experiment:
    """The experiment of a composed configuration; raises ConfigError in the words of the keys."""
    missing = OmegaConf.missing_keys(cfg)
    if missing:
        raise ConfigError(f"{', '.join(sorted(missing))} must be given; add {sorted(missing)[0]}=...")
    return instantiate(cfg, _convert_="all")


def load(run: Path) -> Experiment:
    """The experiment of a run folder; raises ConfigError where it has none that can be read."""
    file = run / "config.yaml"
    try:
        return build(OmegaConf.create(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ConfigError(f"{file} cannot be read ({' '.join(str(error).split())}); give a run folder") from error


def job(main: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """A Hydra job that ends in one line, before Hydra adds lines of its own."""

    @functools.wraps(main)
    def guarded(cfg: DictConfig) -> None:
        try:
            main(cfg)
        except MISTAKES as error:
            fail(2, explain(error))
        except RunError as error:
            fail(1, str(error))

    return guarded


def run(main: Callable[[], None]) -> None:
    """Call a Hydra main: 2 and one line for a setting that cannot be used, 1 for a run that stopped, 130 for Ctrl-C."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    sys.argv.append(f"hydra.searchpath=[file://{ROOT}]")  # where sweeps/ is
    try:
        main()
    except MISTAKES as error:
        fail(2, explain(error))
    except KeyboardInterrupt:
        fail(130, "interrupted; metrics and a checkpoint are in the run folder")


def fail(code: int, line: str) -> None:
    """Say why, in one line, and leave."""
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(code)


def explain(error: BaseException) -> str:
    """The innermost cause in one line, led by the key where Hydra knows it."""
    key = next((line.split(": ", 1)[1] for line in str(error).splitlines() if line.startswith("full_key: ")), "")
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, ConfigError) and isinstance(error, HydraException):
        return f"{key}.{cause}" if key else str(cause)
    return " ".join(str(error).split())
