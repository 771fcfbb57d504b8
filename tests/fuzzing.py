"""Hostile values for every setting: an experiment is built, or refused in one line.

The cases come from the composed configurations themselves, so a new setting is covered as soon as
it is in conf/. What is refused before torch is imported (console/early.py) must be refused by the
whole check too, and in the same words.
"""

import contextlib
import dataclasses
import functools
import math
import signal
import sys
import time
from collections.abc import Mapping

from composing import compose_run
from omegaconf import OmegaConf

from grpo_guard.console import cli, early
from grpo_guard.console.errors import MISTAKES, explain_mistake
from grpo_guard.experiment import Experiment
from grpo_guard.schema import ConfigError

BASES = [
    [],
    [
        "backbone=sd3_medium",
        "data=prompts",
        "sde=dance",
        "sde/window=sliding",
        "reward=mixture",
        "advantage=shuffled",
        "clipping=dppo",
        "kl=v",
        "old_policy=replay",
        "final_steps=dpm",
        "ema=average",
        "strategy=ddp",
    ],
]
"""Settings that together have several choices of each group."""
HOSTILE = [
    None,
    True,
    -1,
    0,
    2.5,
    -0.5,
    10**9,
    10**400,
    1e308,
    math.inf,
    -math.inf,
    math.nan,
    "",
    " ",
    "1",
    "abc",
    "é\n",
    "a/b",
    "nul\0byte",
    [],
    [1, 2],
    [None],
    {},
    {"a": 1},
    {"_target_": "grpo_guard.kl.none.NoKl"},
]
MISSING = object()
"""Stands for a key that is taken away."""
SPECIAL = {
    "_partial_": ["abc", True, None],
    "_convert_": [5],
    "_recursive_": [False, "abc"],
    "_args_": [[1], 5],
    "unknown": [1],
}
"""Keys to add to every component, with their values."""
LIMIT_S = 20
"""Seconds after which a case counts as hanging: a case takes some 4 ms."""


def nodes(config, path=()):
    """Yield the path of every mapping and leaf of a configuration."""
    if path:
        yield path
    if isinstance(config, dict):
        for key, value in config.items():
            yield from nodes(value, (*path, key))


def select(config, path):
    for key in path:
        config = config[key]
    return config


def is_part(value):
    return isinstance(value, dict) and "_target_" in value


def cases_of(config, seen):
    """Yield (path, value, by Hydra) for every setting whose component has not been seen before.

    OmegaConf takes a hundred times as long as the check itself. So Hydra builds one value of each
    setting, a different one each time, and what only Hydra judges; the others are put into the
    experiment.
    """
    for path in nodes(config):
        component = select(config, path[:-1]).get("_target_")
        if (path, component) in seen:
            continue
        seen.add((path, component))
        own = len(seen) % len(HOSTILE)
        values = HOSTILE[own % 6 :: 6] if path[-1][0] == "_" else HOSTILE
        for row, value in enumerate(values):
            yield path, value, row == own or path[-1][0] == "_"
        yield path, MISSING, True
        if is_part(select(config, path)):
            for key, values in SPECIAL.items():
                for value in values:
                    yield (*path, key), value, True


def find_owner(config, path):
    """Return the path of the innermost component that has a setting."""
    lengths = reversed(range(len(path)))
    return next(path[:n] for n in lengths if "_target_" in select(config, path[:n]))


EXPERIMENT = []
"""The experiment of the settings at hand, as the only entry."""


def changed(settings, path, value):
    """Return a copy of settings with another value at a path."""
    if not path:
        return value
    key, *rest = path
    if value is MISSING and not rest:
        return {name: child for name, child in settings.items() if name != key}
    return {**settings, key: changed(settings.get(key), rest, value)}


def get(part, path):
    """Return what is at a path of an experiment."""
    for key in path:
        children = part.keywords if isinstance(part, functools.partial) else part
        part = children[key] if isinstance(children, Mapping) else getattr(part, key)
    return part


def put(part, path, value, prefix=""):
    """Return a part with another value at a path; each part on the way checks it as ever."""
    key, *rest = path
    if rest:
        value = put(get(part, [key]), rest, value, f"{prefix}{key}.")
    if isinstance(part, functools.partial):
        return functools.partial(part.func, **part.keywords | {key: value})
    if isinstance(part, Mapping):
        return {**part, key: value}
    try:
        return dataclasses.replace(part, **{key: value})
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error


@contextlib.contextmanager
def time_limit():
    def stop(*_):
        raise TimeoutError(f"a case takes more than {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def build(config, path, value):
    """Build an experiment with another value at a path, by Hydra."""
    settings = changed(config, path, value)
    key = path[0]
    if key == "_target_" or key not in settings:
        return cli.build(OmegaConf.create(settings))
    part = cli.build_parts(OmegaConf.create({key: settings[key]}))
    return dataclasses.replace(EXPERIMENT[0], **part)


def refuse_early(config, path, value):
    """Return the line with which the setting is refused before torch is imported, or None."""
    owner = find_owner(config, path)
    settings = changed(select(config, owner), path[len(owner) :], value)
    try:
        early.describe(".".join(owner), settings)
    except ConfigError as error:
        return str(error)
    return None


def attempt(config, path, value, by_hydra):
    """Try a case; return the line of the refusal, or None, and what is wrong with it, or None."""
    try:
        with time_limit():
            experiment = (
                build(config, path, value)
                if by_hydra
                else put(EXPERIMENT[0], path, cli.build_parts(value) if is_part(value) else value)
            )
    except MISTAKES as error:
        line = explain_mistake(error)
        return line, None if is_explained(error, line) else repr(error)
    except BaseException as error:
        return None, f"{type(error).__name__}: {error}"
    return None, None if isinstance(experiment, Experiment) else f"built {experiment!r}"


def is_explained(error, line):
    """Return whether a refusal is one line that names a remedy, and no raw error of the depths."""
    return "\n" not in line and "; " in line and "Error in call" not in line


def is_worded(path, value):
    """Return whether both refusals say the same in other words: Hydra's flags, and components."""
    return path[-1][0] == "_" or is_part(value)


def main():
    """Try all cases; print the faults, then how many were tried, refused, and refused early."""
    tried = refused = early_refused = 0
    seen = set()
    for base in BASES:
        config = OmegaConf.to_container(compose_run(*base, "output=run"), resolve=True)
        EXPERIMENT[:] = [cli.build(OmegaConf.create(config))]
        for path, value, by_hydra in cases_of(config, seen):
            line, fault = attempt(config, path, value, by_hydra)
            early_line = refuse_early(config, path, value)
            tried += 1
            refused += line is not None
            early_refused += early_line is not None
            if early_line and line != early_line and not (line and is_worded(path, value)):
                fault = f"{early_line!r} before torch is imported"
            setting = f"{'.'.join(path)}={'missing' if value is MISSING else value!r:.40}"
            if fault:
                print(f"{setting}: {line!r}, but {fault:.200}", file=sys.stderr)
            if len(sys.argv) > 1:
                print(f"{setting} -> {line}"[:300], time.process_time())
    print(tried, refused, early_refused, round(time.process_time()))


if __name__ == "__main__":
    main()
