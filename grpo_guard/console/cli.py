"""What all scripts share: composed configurations and command lines.

A mistake of the user always ends in one line on stderr that says what to change, and one of the
exit codes of console/errors.py.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from grpo_guard.console import helping
from grpo_guard.console.early import check_early
from grpo_guard.console.errors import (
    FAILED,
    INTERRUPTED,
    MISTAKES,
    REFUSED,
    RESUMABLE,
    explain_failure,
    explain_mistake,
    report_full_disk,
)
from grpo_guard.console.launch import is_launched, leave_message
from grpo_guard.console.multirun import collect_failures, finds_its_folders, is_multirun
from grpo_guard.console.overrides import check_options, check_overrides, quote, quote_override
from grpo_guard.console.streams import lasting_streams
from grpo_guard.console.suggestions import known_settings
from grpo_guard.lifecycle.stop import EndRequested, Stopped, end_on_request
from grpo_guard.schema import ConfigError, RunError, hide_secrets

if TYPE_CHECKING:
    from grpo_guard.experiment import Experiment

ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds the package; in a checkout, the root of the repository."""
SETTINGS = next(folder for folder in (ROOT / "grpo_guard", ROOT) if (folder / "conf").is_dir())
"""The folder that holds conf/ and sweeps/: the package if it was installed, or the checkout."""
CONF = str(SETTINGS / "conf")
"""Folder of the configurations, as Hydra wants it."""

_TARGET = "grpo_guard.experiment.Experiment"
_RENAMED_KEYS = ("old", "tail")  # old_policy and final_steps since


def build(cfg: DictConfig) -> Experiment:
    """Build the experiment of a composed configuration; raises ConfigError that names the keys."""
    from grpo_guard.experiment import Experiment

    experiment = build_parts(cfg)
    if not isinstance(experiment, Experiment):
        raise ConfigError(f"_target_ makes no experiment; give {_TARGET}")
    return experiment


def build_parts(cfg: DictConfig) -> Any:
    """Build whatever a configuration describes; raises ConfigError that names the keys."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"{', '.join(missing)} must be given; add {missing[0]}=...")
    # Users keep a reward of their own in the folder where they start a command. Their files come
    # last, so that they hide no module.
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    try:
        return instantiate(cfg, _convert_="all")
    except (TypeError, ValueError) as error:
        # Hydra raises these, and nothing else, for values of its own keys, such as _partial_.
        *reason, key = str(error).removeprefix("Instantiation: ").splitlines()
        where = key.removeprefix("full_key: ") if reason else "the configuration"
        raise ConfigError(f"{where}: {' '.join(reason or [key])}; give true or false") from error


def load(run: Path) -> Experiment:
    """Build the experiment of a run folder.

    Raises ConfigError if its config.yaml cannot be read or comes from an earlier version.
    """
    file = run / "config.yaml"
    try:
        return build(OmegaConf.create(read_config(file)))
    except HydraException as error:
        raise ConfigError(f"{file}: {explain_mistake(error)}") from error


def check_published(choices: Mapping[str, str | None]) -> None:
    """Raise ConfigError if `published` is of another family than the experiment.

    Hydra would compose the pair, and the run would have nobody's settings.
    """
    published = choices.get("published")
    if published in (None, "null"):
        return
    experiment = choices.get("experiment") or "null"
    family, _, _ = published.rpartition("_")
    if not set(family.split("_")) <= set(experiment.split("_")):
        raise ConfigError(
            f"published={published} does not go with experiment={experiment};"
            " docs/recipes.md lists the pairs"
        )


def read_config(file: Path) -> dict[str, Any]:
    """Read the config.yaml of a run folder.

    Raises ConfigError if it cannot be read or was written by an earlier version of grpo_guard.
    """
    try:
        config: Any = OmegaConf.to_container(OmegaConf.create(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file} cannot be read ({reason}); give a run folder") from error
    if not isinstance(config, dict) or not config:
        raise ConfigError(f"{file} is not the configuration of a run; give a run folder")
    signs = find_earlier_layout(config)
    if signs:
        raise ConfigError(
            f"{file} was written by an earlier version of grpo_guard (it has {signs});"
            " continue with that version or start a new run"
        )
    return config


def find_earlier_layout(config: Mapping[str, Any]) -> str:
    """Return what only earlier versions write into a configuration; "" if it has none of it."""
    signs = [key for key in _RENAMED_KEYS if key in config]
    if config.get("_target_", _TARGET) != _TARGET:
        signs.append(f"_target_: {config['_target_']}")
    clipping = config.get("clipping")
    if isinstance(clipping, dict) and "name" not in clipping:
        signs.append("no clipping.name")
    return ", ".join(signs)


def hide_progress_bars() -> None:
    """Hide the progress bars of libraries in logs, and in all processes but the first."""
    warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument is deprecated")
    if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        return
    from diffusers.utils.logging import disable_progress_bar as disable_bars_of_pipelines
    from transformers.utils.logging import disable_progress_bar as disable_bars_of_weights

    disable_bars_of_pipelines()
    disable_bars_of_weights()


def job(main: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Make a function a Hydra job that ends in one line if it fails.

    It leaves before Hydra adds lines of its own. In a multirun, `multirun.Failures` handles errors.
    """

    @functools.wraps(main)
    def guarded(cfg: DictConfig) -> Any:
        try:
            # Launchers of multiruns call a job in processes of their own, in which `run` is not
            # called. They pickle this function: a decorator that is a generator cannot be pickled.
            with lasting_streams(), report_full_disk():
                check_early(cfg)
                return main(cfg)
        except (*MISTAKES, RunError) as error:
            if is_multirun():
                raise
            fail(FAILED if isinstance(error, RunError) else REFUSED, explain_failure(error))
        except Stopped as reason:
            fail(RESUMABLE, str(reason), "stopped")

    return guarded


@lasting_streams()
def run(main: Callable[[], None], command: str = "train") -> None:
    """Call the Hydra main of a command; exits with a code of console/errors.py if it fails."""
    if helping.answer(sys.argv[1:], Path(CONF), command):
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"
    end_on_request()
    sweep = Path(f"runs/multirun/{time.strftime('%Y-%m-%d_%H-%M-%S')}_{os.getpid()}")
    # The search path is where Hydra finds sweeps/. Each multirun has its own folder for failures.
    added = [f"hydra.searchpath=[{quote(f'file://{SETTINGS}')}]", f"hydra.sweep.dir={sweep}"]
    sys.argv[1:] = options_first([*map(quote_override, sys.argv[1:]), *added])
    config_name = helping.CONFIG_NAMES[command]
    find_known = functools.cache(lambda: known_settings(Path(CONF), config_name, sys.argv[1:]))
    try:
        check_options(sys.argv[1:], sweeps=command not in helping.ENDLESS)
        check_overrides(sys.argv[1:], Path(CONF), find_known)
        main()
    except MISTAKES as error:
        fail(REFUSED, explain_mistake(error, lambda: [*find_known()]))
    except ValueError:
        # Optuna raises it if all trials failed: there is no best one.
        if not any(sweep.glob("failed/*")):
            raise
    except EndRequested as reason:
        fail(RESUMABLE, str(reason), "stopped")
    except KeyboardInterrupt:
        fail(
            INTERRUPTED,
            "interrupted; the same command with output= its folder and resume=auto continues it",
        )
    finally:
        has_failed = report_failures(sweep, sys.argv[1:])
    if has_failed:
        raise SystemExit(FAILED)


def report_failures(sweep: Path, arguments: Sequence[str]) -> bool:
    """Print which jobs of a multirun failed and how to repeat them; returns whether any did."""
    failures = collect_failures(sweep)
    if failures:
        again = (
            "the same command runs only these jobs again"
            if finds_its_folders(arguments)
            else "the same command would begin every job anew, so give these settings alone"
        )
        print(
            f"\n{len(failures)} failed; {again}:",
            *failures,
            sep="\n  ",
            file=sys.stderr,
        )
    return bool(failures)


def options_first(arguments: Sequence[str]) -> list[str]:
    """Move overrides to the end: argparse, which Hydra uses, wants them together."""

    def is_override(word: str) -> bool:
        return not word.startswith("-") and ("=" in word or word.startswith("~"))

    return sorted(arguments, key=is_override)


def make_parser(description: str, epilog: str) -> argparse.ArgumentParser:
    """Make a command line without a configuration; examples of the epilog stay as they are."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=helping.HelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=helping.VERSION, help="print the version"
    )
    return parser


@contextlib.contextmanager
def exit_on_mistake() -> Iterator[None]:
    """Exit with one line: `REFUSED` if a setting cannot be used, `FAILED` if a reward fails.

    A reader of the output that leaves, such as `| head -1`, does not end the command.
    """
    try:
        with lasting_streams():
            yield
    except (*MISTAKES, RunError) as error:
        fail(FAILED if isinstance(error, RunError) else REFUSED, explain_failure(error))


@contextlib.contextmanager
def report_unwritable(out: Path) -> Iterator[None]:
    """Raise ConfigError instead of OSError if --out cannot be written."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"--out={out} cannot be written ({error.strerror}); choose another place"
        ) from error


def fail(code: int, line: str, kind: str = "error") -> NoReturn:
    """Print one line on stderr and exit with `code`.

    A process that scripts/train.py launched leaves the line to it, which prints it once for all.
    """
    line = hide_secrets(line)
    if is_launched():
        leave_message(line)
    else:
        print(f"{kind}: {line}", file=sys.stderr)
    raise SystemExit(code)
