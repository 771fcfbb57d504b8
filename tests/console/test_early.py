"""Most hostile settings are refused before torch is imported.

tests/test_fuzz.py compares the lines with those of the whole check, in thousands of cases.
"""

import os
import re
from types import SimpleNamespace

import pytest
from composing import compose_run
from omegaconf import OmegaConf

from grpo_guard.console.early import check_early
from grpo_guard.schema import ConfigError

REFUSALS = {
    "strategy.device": ("cpu:foo", "='cpu:foo' is unknown; choose auto, cpu, cuda or cuda:N"),
    "strategy.threads": (0, "=0 is not positive; null uses all cores"),
    "eval.gold.pickscore": (5, "=5 is an int; give a choice of conf/reward"),
    "logger.sinks.wandb": (5, "=5 is an int; give a choice of conf/logger"),
    "clipping.ratio": (5, "=5 is an int; give a choice of conf/clipping/ratio"),
    "clipping.adaptation": ([1], "=[1] is a list; give a choice of conf/clipping/adaptation"),
    "clipping._target_": ("grpo_guard.no.No", "=grpo_guard.no.No is no class or function; give "),
    "clipping.weight._target_": (
        "grpo_guard.kl.none.NoKl",
        "clipping.weight=NoKl is a function; give a choice of conf/clipping/weight",
    ),
    "kl._target_": (
        "grpo_guard.sde.ode.Ode",
        "kl=Ode is a function; give a choice of conf/kl",
    ),
    "clipping.unknown": (1, " is unknown; remove it"),
    "optim.lr": (float("inf"), "=inf is not finite; give a number"),
    "optim.weight_decay": (1e308, "=1e+308 is too large; give a number up to 1e+09"),
    "sde.level": (float("nan"), "=nan is not positive; use sde=ode"),
    "sde.window.first": (-1, "=-1 is negative; count steps from 0"),
    "backbone.resolution": (0, "=0 is not positive; give 1 or more"),
    "backbone.dtype": ("float8", "='float8' is unknown; choose from float32, float16, bfloat16"),
    "data.prompts": (10**9, "=1000000000 needs 8192 GB of memory or more; give at most 100000"),
    "reward.name": ("failed/x", "='failed/x' has a slash; give a name without one"),
    "reward.read": (5, "=5 is an int; give a "),
    "resume": ("/nowhere", "=/nowhere is not a state of a run; give RUN/state/<iteration>, "),
    "data.repeats": (15, "data.prompts=12 x data.repeats=15 = 180 samples do not divide into"),
    "output": ("", "='' is empty; give a text"),
    "iterations": (None, " is null; give a value of type int"),
    "seed": ("???", " must be given; add seed=..."),
    "max_failed": (
        "${nothing}",
        " cannot be resolved (Interpolation key 'nothing' not found); give a value",
    ),
    "microbatch": ("${oc.env:NOTHING}", " cannot be resolved (KeyError raised while resolving"),
}
"""Value and end of the line of a refusal, by key."""


@pytest.fixture(scope="module")
def cfg():
    return compose_run("output=run", "strategy.threads=1")


def change(cfg, key, value):
    settings = OmegaConf.to_container(cfg)
    *parents, last = key.split(".")
    node = settings
    for parent in parents:
        node = node[parent]
    node[last] = value
    return OmegaConf.create(settings)


@pytest.mark.parametrize("key", REFUSALS)
def test_a_setting_is_refused_in_a_line(cfg, key):
    value, end = REFUSALS[key]
    with pytest.raises(ConfigError) as refusal:
        check_early(change(cfg, key, value))
    assert str(refusal.value).startswith((f"{key}{end}", end))


@pytest.mark.parametrize("key", ["optim.lr", "optim.weight_decay"])
def test_an_optimizer_steps_forward(cfg, key):
    with pytest.raises(ConfigError, match=f"^{key}=-0.1 is negative; give 0 or more$"):
        check_early(change(cfg, key, -0.1))


def test_a_library_that_is_not_here_is_refused(cfg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing = {"_target_": "my_file.MyReward"}
    with pytest.raises(ConfigError, match=r"^reward\._target_=my_file.MyReward is no class or fun"):
        check_early(change(cfg, "reward", missing))
    (tmp_path / "my_file.py").touch()
    check_early(change(cfg, "reward", missing))


def test_a_folder_that_cannot_be_made_is_refused(cfg, tmp_path):
    (tmp_path / "file").touch()
    place = tmp_path / "file/run"
    line = f"output={place} cannot be written (Not a directory: {tmp_path}/file); choose another"
    with pytest.raises(ConfigError, match=f"^{re.escape(line)}"):
        check_early(change(cfg, "output", str(place)))
    check_early(change(cfg, "output", str(tmp_path / "new/run")))


def test_a_file_system_that_cannot_be_written_is_called_so(cfg, tmp_path, monkeypatch):
    read_only = SimpleNamespace(f_flag=os.ST_RDONLY)
    monkeypatch.setattr(os, "statvfs", lambda path: read_only)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError, match=rf"\(Read-only file system: {tmp_path}\)"):
        check_early(change(cfg, "output", str(tmp_path / "run")))


def test_a_token_is_named_by_a_variable(monkeypatch):
    monkeypatch.delenv("sekret4f9a", raising=False)
    cfg = compose_run("output=run", "reward=remote", "reward.token=sekret4f9a")
    with pytest.raises(ConfigError, match=r"^reward\.token is the name of an env") as refusal:
        check_early(cfg)
    assert "sekret" not in str(refusal.value)


@pytest.mark.parametrize("value", ["abc", 1, None])
def test_a_flag_of_hydra_is_true_or_false(cfg, value):
    line = f"^clipping.ratio._partial_={value} is no flag; give true or false$"
    with pytest.raises(ConfigError, match=line):
        check_early(change(cfg, "clipping.ratio._partial_", value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 7),
        ("max_grad_norm", float("inf")),
        ("clipping", {"_target_": "composing.MyClipping", "anything": -1}),
        ("reward", {"_target_": "composing.MyReward"}),
    ],
)
def test_what_cannot_be_judged_without_an_import_passes(cfg, key, value):
    check_early(change(cfg, key, value))
