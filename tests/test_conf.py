"""The configuration mirrors the package, every choice can be built offline, and mistakes are refused in one line."""

import dataclasses
import importlib
import os
import pkgutil
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

import grpo_guard
import train as script
from grpo_guard.experiment import Experiment
from lib import cli

CONF = Path(cli.CONF)
NOUNS = [
    "backbone",
    "data",
    "sde",
    "reward",
    "watch",
    "advantage",
    "clipping",
    "kl",
    "old_policy",
    "final_steps",
    "ema",
    "strategy",
    "logger",
    "eval",
]
UNMIRRORED = {
    "hydra",
    "experiment",
    "preset",
    "optim",
}  # Hydra's own, settings of others, torch's classes
PACKAGES = {noun: f"grpo_guard.{noun}" for noun in NOUNS} | {"clipping/ratio": "grpo_guard.ratio"}
FILES = sorted(path.relative_to(CONF).with_suffix("") for path in CONF.rglob("*.yaml"))
CHOICES = [str(file) for file in FILES if len(file.parts) > 1 and file.parts[0] not in UNMIRRORED]
EXPERIMENTS = [file.name for file in FILES if file.parts[0] == "experiment"]


def targets(node):
    """Every `_target_` in a YAML, nested ones too."""
    if isinstance(node, list):
        return [found for item in node for found in targets(item)]
    if not isinstance(node, dict):
        return []
    return [v for k, v in node.items() if k == "_target_"] + targets(list(node.values()))


def package(choice):
    """Where the targets of a YAML belong: to its subfolder's package if that has its own, else to its group's."""
    group = str(Path(choice).parent)
    return PACKAGES.get(group, PACKAGES[group.split("/")[0]])


def written(choice):
    return targets(yaml.safe_load((CONF / f"{choice}.yaml").read_text(encoding="utf-8")))


@pytest.fixture
def composed(tmp_path):
    """Compose the run of some overrides; what must be given is given as a path."""

    def make(*overrides):
        with initialize_config_dir(cli.CONF, version_base="1.3"):
            cfg = compose("train", overrides=[*overrides, f"output={tmp_path}"])
        for key in OmegaConf.missing_keys(cfg):
            OmegaConf.update(cfg, key, str(tmp_path / "given"))
        return cfg

    return make


def test_folders_are_the_groups_of_the_package():
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == {*NOUNS} | UNMIRRORED


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_is_of_its_groups_package(choice):
    for target in written(choice):
        assert target.startswith(package(choice) + ".")
        assert callable(get_object(target))


@pytest.mark.parametrize("noun", NOUNS)
def test_every_module_is_a_choice(noun):
    modules = pkgutil.iter_modules(importlib.import_module(f"grpo_guard.{noun}").__path__)
    targeted = {target.rpartition(".")[0] for choice in CHOICES for target in written(choice)}
    choices = {module.name for module in modules if not module.name.startswith("_")}
    assert {f"grpo_guard.{noun}.{choice}" for choice in choices} <= targeted


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_is_built_offline(choice, composed, monkeypatch):
    monkeypatch.setattr(
        "socket.socket.connect", lambda *_: pytest.fail("building reaches for the network")
    )
    group, _, name = choice.rpartition("/")
    node = OmegaConf.select(composed(f"{group}={name}"), group.replace("/", "."))
    built = instantiate(node, _convert_="all")
    assert dataclasses.is_dataclass(built) or callable(built)


@pytest.mark.parametrize("name", [None, *EXPERIMENTS])
def test_every_experiment_is_built(name, composed):
    assert isinstance(cli.build(composed(*[f"experiment={name}"] if name else [])), Experiment)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_says_how_it_is_run(name):
    package, command, *_ = (
        (CONF / f"experiment/{name}.yaml").read_text(encoding="utf-8").splitlines()
    )
    assert package == "# @package _global_"
    assert command.startswith("# python scripts/train.py")
    assert f"experiment={name}" in command


@pytest.fixture
def refusal(tmp_path, monkeypatch, capsys):
    """What `scripts/train.py` answers to overrides that it must refuse: one line, after which nothing has changed."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(script, "train", lambda *_: pytest.fail("accepted"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*overrides):
        monkeypatch.setattr(sys, "argv", ["train.py", *overrides])
        with pytest.raises(SystemExit) as left:
            cli.run(script.main)
        assert left.value.code == 2
        assert not list(work.iterdir())
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(r"error: [^\n]+\n", err)
        return err

    yield run
    signal.signal(signal.SIGTERM, handler)
    GlobalHydra.instance().clear()


REFUSED = {
    "unknown key": (["stepz=5"], ["stepz"]),
    "unknown nested key": (["clipping.hihg=1"], ["clipping.hihg"]),
    "unknown added key": (["+clipping.hihg=1"], ["clipping", "hihg"]),
    "unknown choice": (["clipping=gard"], ["clipping/gard", "Available options", "guard", "vanilla"]),
    "unknown override syntax": (["steps"], ["steps"]),
    "no steps": (["steps=1"], ["steps=1 leaves no trained step; give 2 or more"]),
    "no clip range": (["clipping.high=0"], ["clipping.high=0 is not positive; give"]),
    "negative clip range": (["clipping.high=-2.0e-6"], ["clipping.high=-2e-06 is not positive; give"]),
    "lower clip range": (["clipping.low=1.5"], ["clipping.low=1.5 is outside (0, 1); give"]),
    "one sample of a prompt": (["data.repeats=1"], ["data.repeats=1 leaves nothing to compare in a group; give 2"]),
    "indivisible group": (["data.prompts=5", "data.repeats=3"], ["data.repeats=3 = 15 samples", "updates=2; nearest"]),
    "indivisible rows": (["microbatch=7"], ["microbatch=7; nearest that does: 6"]),
    "window beyond the schedule": (["sde.window.last=10"], ["last=10 reaches the last of 10 steps", "at most 9"]),
    "window of nothing": (["sde.window.first=3", "sde.window.last=3"], ["sde.window.last=3 leaves no step", "above 3"]),
    "too many steps per sample": (["steps_per_sample=12"], ["steps_per_sample=12 is outside 1..9", "null"]),
    "no steps per sample": (["steps_per_sample=0"], ["steps_per_sample=0 is outside 1..9", "null"]),
    "no noise": (["clipping=guard", "sde=ode"], ["sde=ode has no noise", "choose sde=flow"]),
    "dppo with a clip range": (["clipping=dppo", "clipping.high=1e-4"], ["Could not override 'clipping.high'"]),
    "no divergence": (["clipping=dppo", "clipping.divergence=0"], ["clipping.divergence=0 is not positive"]),
    "no penalty": (["kl=x", "kl.beta=0"], ["kl.beta=0 is not positive; use kl=none"]),
    "a target above 1": (["clipping/adaptation=target_fraction", "clipping.adaptation.fraction=2"], ["clip.fraction=2 is outside"]),
    "window too long": (["sde/window=random", "sde.window.length=12"], ["window.length=12 is more than the 9"]),
    "level": (["sde=cps", "sde.level=1.5"], ["sde.level=1.5 is outside (0, 1]"]),
    "missing checkpoint": (["backbone.model=./nowhere"], ["backbone.model=./nowhere is no folder here; give"]),
    "unknown device": (["strategy.device=tpu"], ["strategy.device=tpu is unknown; choose auto, cpu"]),
    "prompts not given": (["data=prompts"], ["data.heldout, data.path must be given; add data.heldout=..."]),
    "a learning rate below 0": (["optim.lr=-1"], ["optim", "Invalid learning rate: -1"]),
    "a share above 1": (["max_failed=1.5"], ["max_failed=1.5"]),
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "words"), REFUSED.values(), ids=REFUSED)
def test_mistakes_are_refused_in_one_line(overrides, words, refusal):
    line = refusal(*overrides)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\n", "holds no prompt; give one per line"),
        (b"\xc4pfel", "is not UTF-8 (byte 0); save it as UTF-8"),
    ],
)
def test_prompt_files_are_read_before_anything_is_written(content, words, refusal, tmp_path):
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("a cat")
    bad.write_bytes(content)
    line = refusal("data=prompts", f"data.path={bad}", f"data.heldout={good}")
    assert f"error: data.path={bad} {words}" in line


def test_a_folder_that_cannot_be_written(refusal, tmp_path):
    (tmp_path / "file").write_text("")
    assert "/file/run cannot be written (Not a directory); choose another" in refusal(
        f"output={tmp_path}/file/run"
    )


def test_a_run_is_never_written_over(refusal, tmp_path):
    written = "seed: 1\n"
    (tmp_path / "config.yaml").write_text(written)
    never = refusal(f"output={tmp_path}", "resume=never")
    assert f"output={tmp_path} already holds a run; choose another folder" in never
    other = refusal(f"output={tmp_path}")
    assert f"output={tmp_path} holds a run of other settings (" in other
    assert "choose another folder, or begin there from one of its states by resume=" in other
    assert (tmp_path / "config.yaml").read_text() == written


def test_a_full_disk_ends_a_run_in_a_line(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device", "metrics.jsonl")

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(script, "train", full)
    monkeypatch.setattr(sys, "argv", ["train.py", f"output={tmp_path}"])
    with pytest.raises(SystemExit) as left:
        cli.run(script.main)
    signal.signal(signal.SIGTERM, handler)
    GlobalHydra.instance().clear()
    line = "error: No space left on device (metrics.jsonl); make room, and the same command goes on"
    assert (left.value.code, capsys.readouterr().err.splitlines()[-1]) == (1, line)


def test_a_wrong_type_from_the_command_line(tmp_path):
    """In a process of its own, as these tests' type checks would find it first; a backbone would take longest."""
    command = [sys.executable, str(cli.ROOT / "scripts/train.py"), "~backbone", "sde.level=high"]
    environment = os.environ | {"PYTHONPATH": str(Path(grpo_guard.__file__).parents[1])}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: sde.level='high' is a str; give a value of type float\n"
    assert not list(tmp_path.iterdir())
