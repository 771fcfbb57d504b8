"""Rewards of users: the file of docs/new_reward.md, and what happens when such a reward fails."""

import re
import shlex
import sys
from dataclasses import replace

import pytest
import torch
from composing import compose_run
from hydra import compose, initialize_config_dir
from toy import Grey, experiment, load_policy, read_repeatable_metrics

from grpo_guard.console import cli
from grpo_guard.reward import load_scorer, make_filter, make_rewards, rewards_from_parts
from grpo_guard.reward.clip_formats import loading
from grpo_guard.reward.mixture import Mixture
from grpo_guard.schema import ConfigError, RunError, component
from grpo_guard.train import train
from grpo_guard.types import Prompt

CPU = torch.device("cpu")
GUIDE = (cli.ROOT / "docs/new_reward.md").read_text(encoding="utf-8")
IMAGES = torch.linspace(0.1, 0.9, 4).view(4, 1, 1, 1).expand(4, 3, 2, 2)
PROMPTS = [Prompt(text="a cat")] * 4


@component
class Own(Grey):
    """A toy reward that returns, or raises, something else."""

    result: object
    """A function of the images."""

    def load(self, device):
        return lambda images, prompts: self.result(images)


def leave(images):
    raise SystemExit(0)


def stumble(images):
    return {}["missing"]


def brightness(images):
    return images.mean((1, 2, 3))


FAULTS = {
    "an exception": (stumble, r"raised KeyError: 'missing' \(test_own_reward.py line \d+\); fix"),
    "an exit": (leave, r"raised SystemExit: 0 \(test_own_reward.py line \d+\); fix it"),
    "None": (lambda x: None, "returned a NoneType; return make_rewards"),
    "a tensor": (brightness, "returned a Tensor; return make_rewards"),
    "a column": (
        lambda x: make_rewards(x, b=brightness(x)[:, None]),
        r"b has shape \(4, 1\); give",
    ),
    "one score": (
        lambda x: make_rewards(x, b=x.mean()),
        r"b has shape \(\); give one score per im",
    ),
    "too few": (
        lambda x: rewards_from_parts(b=brightness(x)[1:]),
        r"b, which has shape \(3,\); gi",
    ),
    "integers": (
        lambda x: make_rewards(x, b=brightness(x).long()),
        "b has dtype torch.int64; give",
    ),
    "a gradient": (
        lambda x: rewards_from_parts(b=brightness(x).clone().requires_grad_()),
        "b, which has a gradient attached; compute it under",
    ),
    "infinity": (
        lambda x: make_rewards(x, b=brightness(x).log() / 0),
        "returned an infinite score",
    ),
    "hidden NaN": (
        lambda x: replace(make_rewards(x, b=brightness(x)), total=torch.full((4,), torch.nan)),
        "returned a total of NaN that is not marked as failed",
    ),
    "a foreign weight": (
        lambda x: replace(make_rewards(x, b=brightness(x)), weights={"c": 1.0}),
        r"returned weights of \['c'\] and parts \['b'\]",
    ),
    "a note too few": (
        lambda x: replace(make_rewards(x, b=brightness(x)), notes=(("dark",),)),
        "returned notes on 1 of 4 images",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_one_line_that_names_the_reward(case):
    result, words = FAULTS[case]
    score = load_scorer("eval.gold.own", Own(result=result), CPU)
    with pytest.raises(RunError, match=words) as error:
        score(IMAGES, PROMPTS)
    line = str(error.value)
    assert re.match(r"eval\.gold\.own \(\S*test_own_reward\.Own\) (raised|returned) ", line)
    assert "\n" not in line


def test_networks_need_no_gradient_of_their_own():
    """A reward without torch.no_grad() is scored without a gradient."""
    network = torch.nn.Linear(3, 1)
    own = Own(result=lambda x: make_rewards(x, b=network(x.mean((2, 3)))[:, 0]))
    assert not load_scorer("reward", own, CPU)(IMAGES, PROMPTS).total.requires_grad


def test_messages_of_the_package_are_kept():
    def refuse(images):
        raise RunError("the server is gone")

    with pytest.raises(RunError, match=r"^the server is gone$"):
        load_scorer("reward", Own(result=refuse), CPU)(IMAGES, PROMPTS)


def test_a_part_of_a_mixture_is_named():
    parts = {"fine": Grey(), "own": Own(result=leave)}
    mixture = Mixture(rewards=parts, weights={"fine": 1.0, "own": 1.0})
    with pytest.raises(RunError, match=r"^rewards\.own \(.*Own\) raised SystemExit: 0 "):
        load_scorer("reward", mixture, CPU)(IMAGES, PROMPTS)


class Broken:
    """A reward whose members raise."""

    compares = False
    weight_bytes = 0

    def accepts(self, prompt):
        raise AttributeError("no such word")

    def load(self, device):
        raise FileNotFoundError("weights.pt")


def test_what_load_and_accepts_raise_is_refused():
    with pytest.raises(ConfigError, match=r"^reward \(.*Broken\) raised FileNotFoundError: weig"):
        load_scorer("reward", Broken(), CPU)
    with pytest.raises(ConfigError, match=r"^reward \(.*Broken\) raised AttributeError: no such w"):
        make_filter("reward", Broken())(PROMPTS[0])
    with pytest.raises(ConfigError, match=r"Broken\) raised AttributeError"):
        experiment(reward=Broken()).split()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("NCCL error in: ProcessGroupNCCL.cpp, Cuda failure 2 'out of memory'"),
        MemoryError(),
    ],
)
def test_memory_that_does_not_suffice_is_no_fault_of_the_reward(error):
    """Neither of its code nor of its files: whoever calls explains it."""

    def run_short(*_):
        raise error

    class Hungry(Broken):
        def load(self, device):
            with loading("model", "clip", "model.safetensors"):
                run_short()

    with pytest.raises(type(error)) as caught:
        load_scorer("reward", Hungry(), CPU)
    assert caught.value is error
    with pytest.raises(type(error)) as caught:
        load_scorer("reward", Own(result=run_short), CPU)(IMAGES, PROMPTS)
    assert caught.value is error


def test_a_load_without_a_scorer_is_refused():
    class Empty(Broken):
        def load(self, device):
            return None

    with pytest.raises(ConfigError, match=r"Empty\)\.load returned a NoneType; return a function"):
        load_scorer("reward", Empty(), CPU)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_fault_costs_one_iteration(tmp_path, asynchronous):
    """The run resumes from the state before, and ends like one without a fault."""
    calls = []

    def grey(images):
        return rewards_from_parts(grey=-(brightness(images) - 0.8).square())

    def fail_late(images):
        calls.append(len(images))
        if len(calls) > 10:
            raise SystemExit(0)
        return grey(images)

    changes = {"asynchronous": asynchronous, "selftest": False}
    for name in "ab":
        (tmp_path / name).mkdir()
    with pytest.raises(RunError, match=r"^reward \(.*Own\) raised SystemExit: 0 "):
        train(experiment(tmp_path / "a", reward=Own(result=fail_late), **changes), {})
    assert list((tmp_path / "a" / "state").iterdir())
    for name in "ab":
        train(experiment(tmp_path / name, reward=Own(result=grey), **changes), {})
    rows = [read_repeatable_metrics(tmp_path / name) for name in "ab"]
    assert rows[0] == rows[1]
    first, second = (load_policy(tmp_path / name, 3) for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def own_file(tmp_path, monkeypatch):
    """Write the file of the guide into the current folder."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    (tmp_path / "my_reward.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_reward", None)


def test_the_file_of_the_guide_is_short(own_file):
    _, _, own_class = (own_file / "my_reward.py").read_text().partition("@component")
    code = [line for line in own_class.splitlines() if line.strip()]
    assert 1 + len(code) <= 12  # with the decorator


def test_the_file_of_the_guide_is_served(own_file):
    (command,) = re.findall(r"^python scripts/serve_reward.py .*$", GUIDE, re.MULTILINE)
    with initialize_config_dir(cli.CONF, version_base="1.3"):
        cfg = compose("serve", shlex.split(command)[2:])
    service = cli.build_parts(cfg)
    assert (type(service.reward).__module__, service.name) == ("my_reward", "brightness")


def test_the_file_of_the_guide_trains(own_file):
    """Both commands of the guide build the reward from the current folder; the run uses it."""
    own, gold = (
        cli.build(compose_run("output=unused", *shlex.split(command)[2:], "logger=none"))
        for command in re.findall(r"^python scripts/train.py .*$", GUIDE, re.MULTILINE)
    )
    bright = own.reward
    assert (type(bright).__module__, type(bright).__name__) == ("my_reward", "Brightness")
    assert (bright.target, gold.eval.gold["bright"].target) == (0.5, 0.8)
    scores = load_scorer("reward", bright, CPU)(IMAGES, PROMPTS)
    expected = [-((x - 0.5) ** 2) for x in IMAGES[:, 0, 0, 0].tolist()]
    assert scores.parts["brightness"].tolist() == pytest.approx(expected, abs=1e-6)
    (own_file / "run").mkdir()
    train(experiment(own_file / "run", reward=bright, iterations=1), {})
    assert "reward/brightness" in read_repeatable_metrics(own_file / "run")[0]
