"""The configuration mirrors the package, every choice can be built, mistakes get one line."""

import dataclasses
import importlib
import os
import pkgutil
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from composing import EARLIER_CONFIG, compose_choice, compose_run
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

import grpo_guard
from grpo_guard.command import train as script
from grpo_guard.command import training
from grpo_guard.console import cli, errors
from grpo_guard.experiment import Experiment
from grpo_guard.lifecycle.immaterial import IMMATERIAL

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
UNMIRRORED = {"hydra", "experiment", "published", "preset", "optim"}
"""Groups without a package of their own: Hydra's, settings of other groups, classes of torch."""
PACKAGES = {noun: f"grpo_guard.{noun}" for noun in NOUNS} | {"clipping/ratio": "grpo_guard.ratio"}
FILES = sorted(path.relative_to(CONF).with_suffix("") for path in CONF.rglob("*.yaml"))
CHOICES = [str(file) for file in FILES if len(file.parts) > 1 and file.parts[0] not in UNMIRRORED]
EXPERIMENTS = [file.name for file in FILES if file.parts[0] == "experiment"]


def targets(node):
    """Return every `_target_` in a YAML document, nested ones too."""
    if isinstance(node, list):
        return [target for item in node for target in targets(item)]
    if not isinstance(node, dict):
        return []
    own = [value for key, value in node.items() if key == "_target_"]
    return own + targets(list(node.values()))


def package(choice):
    """Return the package of a choice's targets: that of its subfolder, else that of its group."""
    group = str(Path(choice).parent)
    return PACKAGES.get(group, PACKAGES[group.split("/")[0]])


def targets_of(choice):
    return targets(yaml.safe_load((CONF / f"{choice}.yaml").read_text(encoding="utf-8")))


def compose_in(tmp_path, *overrides):
    """Compose a run in a folder of its own; keys that must be given are paths in it."""
    return compose_run(*overrides, f"output={tmp_path}", missing=str(tmp_path / "missing"))


def test_folders_are_the_groups_of_the_package():
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == {*NOUNS} | UNMIRRORED


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_is_of_its_groups_package(choice):
    for target in targets_of(choice):
        assert target.startswith(package(choice) + ".")
        assert callable(get_object(target))


@pytest.mark.parametrize("noun", NOUNS)
def test_every_module_is_a_choice(noun):
    modules = pkgutil.iter_modules(importlib.import_module(f"grpo_guard.{noun}").__path__)
    targeted = {target.rpartition(".")[0] for choice in CHOICES for target in targets_of(choice)}
    public = {module.name for module in modules if not module.name.startswith("_")}
    assert {f"grpo_guard.{noun}.{name}" for name in public} <= targeted


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_is_built_offline(choice, tmp_path, monkeypatch):
    connect = socket.socket.connect

    def refuse(*arguments):
        # Threads of libraries that earlier tests have started are none of this test's business.
        if threading.current_thread() is threading.main_thread():
            pytest.fail("building uses the network")
        return connect(*arguments)

    monkeypatch.setattr("socket.socket.connect", refuse)
    node = compose_choice(choice, missing=str(tmp_path / "missing"))
    component = instantiate(node, _convert_="all")
    assert dataclasses.is_dataclass(component) or callable(component)


@pytest.mark.parametrize("name", [None, *EXPERIMENTS])
def test_every_experiment_is_built(name, tmp_path):
    overrides = [f"experiment={name}"] if name else []
    assert isinstance(cli.build(compose_in(tmp_path, *overrides)), Experiment)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_says_how_it_is_run(name):
    text = (CONF / f"experiment/{name}.yaml").read_text(encoding="utf-8")
    package, command, *_ = text.splitlines()
    assert package == "# @package _global_"
    assert command.startswith("# python scripts/train.py")
    assert f"experiment={name}" in command


def test_immaterial_settings_exist(tmp_path):
    cfg = compose_in(tmp_path)
    missing = object()
    keys = [key for key in IMMATERIAL if OmegaConf.select(cfg, key, default=missing) is missing]
    assert keys == []


@pytest.fixture
def fresh_hydra(monkeypatch):
    """Restore what scripts/train.py changes in its process."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("PYTHONPATH", "")
    yield
    GlobalHydra.instance().clear()


@pytest.fixture
def refusal(tmp_path, monkeypatch, capsys, fresh_hydra):
    """Return a function that runs scripts/train.py with settings that it must refuse.

    The function checks that the script writes nothing and one line, and returns the line.
    """
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("accepted"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*overrides):
        monkeypatch.setattr(sys, "argv", ["train.py", *overrides])
        with pytest.raises(SystemExit) as left:
            cli.run(script.main)
        assert left.value.code == errors.REFUSED
        assert not list(work.iterdir())
        out, err = capsys.readouterr()
        assert out == ""
        # What is refused once everything is loaded comes after a first line.
        err = err.removeprefix("loading ...\n")
        assert re.fullmatch(r"error: [^\n]+\n", err)
        return err

    return run


REFUSED = {
    "unknown key": (["stepz=5"], ["stepz"]),
    "unknown nested key": (["clipping.hihg=1"], ["clipping.hihg"]),
    "unknown added key": (["+clipping.hihg=1"], ["clipping.hihg is unknown; remove it"]),
    "unknown choice": (["clipping=gard"], ["clipping=gard is no choice; did you mean guard?"]),
    "unknown override syntax": (["steps"], ["steps"]),
    "one step": (["steps=1"], ["steps=1 leaves no trained step; give 2 or more"]),
    "no clip range": (["clipping.high=0"], ["clipping.high=0 is not positive; give"]),
    "negative range": (["clipping.high=-2.0e-6"], ["clipping.high=-2e-06 is not positive; give"]),
    "lower range": (["clipping.low=1.5"], ["clipping.low=1.5 is outside (0, 1); give"]),
    "one sample per prompt": (
        ["data.repeats=1"],
        ["data.repeats=1 leaves nothing to compare in a group; give 2"],
    ),
    "indivisible group": (
        ["data.prompts=5", "data.repeats=3"],
        ["data.repeats=3 = 15 samples", "updates=2"],
    ),
    "indivisible rows": (["microbatch=7"], ["microbatch=7", "6"]),
    "window beyond the schedule": (
        ["sde.window.last=10"],
        ["last=10 includes the last of 10 steps", "at most 9"],
    ),
    "empty window": (
        ["sde.window.first=3", "sde.window.last=3"],
        ["sde.window.last=3 leaves no step", "above 3"],
    ),
    "too many steps per sample": (
        ["steps_per_sample=12"],
        ["steps_per_sample=12 is outside 1..9", "null"],
    ),
    "no steps per sample": (["steps_per_sample=0"], ["steps_per_sample=0 is outside 1..9", "null"]),
    "no noise": (["clipping=guard", "sde=ode"], ["sde=ode has no noise", "choose sde=flow"]),
    "a clip range for DPPO": (
        ["clipping=dppo", "clipping.high=1e-4"],
        ["clipping.high is no setting; "],
    ),
    "no divergence": (
        ["clipping=dppo", "clipping.divergence=0"],
        ["clipping.divergence=0 is not positive"],
    ),
    "no penalty": (["kl=x", "kl.beta=0"], ["kl.beta=0 is not positive; use kl=none"]),
    "a target above 1": (
        ["clipping/adaptation=target_fraction", "clipping.adaptation.fraction=2"],
        ["clipping.adaptation.fraction=2 is outside"],
    ),
    "window too long": (
        ["sde/window=random", "sde.window.length=12"],
        ["window.length=12 is more than the 9"],
    ),
    "too much noise": (["sde=cps", "sde.level=1.5"], ["sde.level=1.5 is outside (0, 1]"]),
    "missing checkpoint": (
        ["backbone.model=./nowhere"],
        ["backbone.model=./nowhere is no folder here; give"],
    ),
    "unknown device": (
        ["strategy.device=tpu"],
        ["strategy.device='tpu' is unknown; choose auto, cpu"],
    ),
    "missing prompts": (
        ["data=prompts"],
        ["data.heldout, data.path must be given; add data.heldout=..."],
    ),
    "negative learning rate": (["optim.lr=-1"], ["optim.lr=-1 is negative; give 0 or more"]),
    "a share above 1": (["max_failed=1.5"], ["max_failed=1.5"]),
    "a group that is null": (
        ["backbone=null"],
        ["backbone=null is no choice of backbone; give the name"],
    ),
    "a group that is a number": (
        ["clipping=5"],
        ["clipping=5 is no choice of clipping; give the name"],
    ),
    "a group that is a list": (["backbone=[1,2]"], ["backbone=[1,2] is no choice of backbone"]),
    "an inner group": (
        ["clipping/weight=null"],
        ["clipping/weight=null is no choice of clipping/weight"],
    ),
    "hydra's own folder": (["hydra.run.dir=/dev/null/x"], ["hydra.run.dir is set by this program"]),
    "settings of another family": (
        ["experiment=flux_ocr_flow", "published=sd35_guard"],
        ["published=sd35_guard does not go with experiment=flux_ocr_flow; docs/recipes.md lists"],
    ),
    "settings without their experiment": (
        ["published=sd35_guard"],
        ["published=sd35_guard does not go with experiment=null; docs/recipes.md lists"],
    ),
}


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
    line = refusal(f"output={tmp_path}/file/run")
    reason = f"(Not a directory: {tmp_path}/file)"
    assert f"/file/run cannot be written {reason}; choose another folder" in line


def test_a_run_is_never_written_over(refusal, tmp_path):
    config = "seed: 1\n"
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 0}\n')
    never = refusal(f"output={tmp_path}", "resume=never")
    assert f"resume=never begins a run, but output={tmp_path} already holds one" in never
    assert "give resume=auto to continue it, or choose another folder" in never
    other = refusal(f"output={tmp_path}")
    assert f"output={tmp_path} holds a run with other settings (" in other
    assert "choose another folder, or start there from a state of that run" in other
    assert (tmp_path / "config.yaml").read_text() == config


@pytest.mark.parametrize(
    "overrides", [["output={run}"], ["output={run}/new", "resume={run}/state/000002"]]
)
def test_a_run_of_an_earlier_version_is_not_resumed(overrides, refusal, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(EARLIER_CONFIG), encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 0}\n')
    assert refusal(*(override.format(run=tmp_path) for override in overrides)) == (
        f"error: {tmp_path}/config.yaml was written by an earlier version of grpo_guard"
        " (it has old, tail, _target_: grpo_guard.train.Experiment, no clipping.name);"
        " continue with that version or start a new run\n"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"work", "config.yaml", "metrics.jsonl"}


def test_a_full_disk_ends_a_run_in_one_line(tmp_path, monkeypatch, capsys, fresh_hydra):
    def fill_disk(*_):
        raise OSError(28, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr(training, "train", fill_disk)
    monkeypatch.setattr(sys, "argv", ["train.py", f"output={tmp_path}"])
    with pytest.raises(SystemExit) as left:
        cli.run(script.main)
    assert left.value.code == errors.FAILED
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: No space left on device (metrics.jsonl); make room, and the same command continues"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_scheduler_may_ask_while_a_model_is_loaded(
    number, tmp_path, monkeypatch, capsys, fresh_hydra
):
    """The exit code says that the same command continues, so that the job is queued again."""
    monkeypatch.setattr(training, "train", lambda *_: signal.raise_signal(number))
    monkeypatch.setattr(sys, "argv", ["train.py", f"output={tmp_path / 'run'}"])
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(SystemExit) as left:
        cli.run(script.main)
    signal.signal(signal.SIGUSR1, before)
    assert left.value.code == errors.RESUMABLE
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("stopped: no iteration was under way; the same command, with output=")


def test_a_wrong_type_from_the_command_line(tmp_path):
    """Run the script in a process of its own, where these tests' type checks are not installed.

    Without a backbone, the type error is what the script meets first.
    """
    command = [sys.executable, str(cli.ROOT / "scripts/train.py"), "~backbone", "sde.level=high"]
    environment = os.environ | {"PYTHONPATH": str(Path(grpo_guard.__file__).parents[1])}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: sde.level=high is no number; give one, such as 0.7\n"
    assert not list(tmp_path.iterdir())


def test_keys_that_a_choice_misses_are_listed(tmp_path):
    cfg = OmegaConf.create({"data": {"path": "???", "heldout": "???"}})
    with pytest.raises(cli.ConfigError, match=r"^data.heldout, data.path must be given; add data"):
        cli.build(cfg)
