"""Hostile values for every setting: an experiment is built, or refused in one line.

The cases come from the composed configurations themselves, so a new setting is covered as soon as
it is in conf/.
"""

import contextlib
import copy
import dataclasses
import math
import signal
import sys
import time

from composing import compose_run
from omegaconf import OmegaConf

from grpo_guard.console import cli
from grpo_guard.console.errors import MISTAKES, explain_mistake
from grpo_guard.experiment import Experiment

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
    10**9,
    10**400,
    1e308,
    math.inf,
    math.nan,
    "",
    "abc",
    "a/b",
    "nul\0byte",
    [],
    [1, 2],
    {},
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
"""Seconds after which a case counts as hanging: a case takes some 20 ms."""


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


def cases_of(config, seen):
    """Yield (path, value) for every setting whose component has not been seen before."""
    for path in nodes(config):
        component = select(config, path[:-1]).get("_target_")
        if (path, component) in seen:
            continue
        seen.add((path, component))
        for value in [*HOSTILE, MISSING]:
            yield path, value
        node = select(config, path)
        if isinstance(node, dict) and "_target_" in node:
            for key, values in SPECIAL.items():
                for value in values:
                    yield (*path, key), value


def changed(config, path, value):
    """Return a copy of the configuration with another value at the path."""
    result = copy.deepcopy(config)
    parent = select(result, path[:-1])
    if value is MISSING:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return result


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


def build(experiment, config, path, value):
    """Build the experiment with another value at a path.

    A part is built by its own settings and put into the experiment, because OmegaConf would spend
    most of the time on the settings of the other parts.
    """
    settings = changed(config, path, value)
    key = path[0]
    if key == "_target_" or key not in settings:
        return cli.build(OmegaConf.create(settings))
    part = cli.build_parts(OmegaConf.create({key: settings[key]}))
    return dataclasses.replace(experiment, **part)


def attempt(experiment, config, path, value):
    """Try a case; return the line of the refusal, or None, and what is wrong with it, or None."""
    try:
        with time_limit():
            experiment = build(experiment, config, path, value)
    except MISTAKES as error:
        line = explain_mistake(error)
        return line, None if is_explained(error, line) else repr(error)
    except BaseException as error:
        return None, f"{type(error).__name__}: {error}"
    return None, None if isinstance(experiment, Experiment) else f"built {experiment!r}"


def is_explained(error, line):
    """Return whether a refusal is one line that names a remedy, and no raw error of the depths."""
    return "\n" not in line and "; " in line and "Error in call" not in line


def main():
    """Try all cases; print the faults, then how many were tried and refused."""
    tried = refused = 0
    seen = set()
    for base in BASES:
        config = OmegaConf.to_container(compose_run(*base, "output=run"), resolve=True)
        experiment = cli.build(OmegaConf.create(config))
        for path, value in cases_of(config, seen):
            line, fault = attempt(experiment, config, path, value)
            tried += 1
            refused += line is not None
            setting = f"{'.'.join(path)}={'missing' if value is MISSING else value!r:.40}"
            if fault:
                print(f"{setting}: {line!r}, but {fault:.200}", file=sys.stderr)
            if len(sys.argv) > 1:
                print(f"{setting} -> {line}"[:300], time.process_time())
    print(tried, refused, round(time.process_time()))


if __name__ == "__main__":
    main()
