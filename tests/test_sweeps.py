"""Every job of every sweep can be built; a sweep goes on where it was, and past what fails."""

import re
import signal
import sys
from pathlib import Path

import hydra
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from grpo_guard.experiment import Experiment
from grpo_guard.schema import ConfigError, RunError
from lib import cli

CONF, FOLDER = Path(cli.CONF), cli.ROOT / "sweeps"
SWEEPS = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "wandb")
PLUGINS = {
    "optuna": "hydra_plugins.hydra_optuna_sweeper",
    "slurm": "hydra_plugins.hydra_submitit_launcher",
}


def composed(*overrides, **options):
    """A run; what must be given is given as a path."""
    with initialize_config_dir(cli.CONF, version_base="1.3"):
        cfg = compose("train", [f"hydra.searchpath=[file://{cli.ROOT}]", *overrides], **options)
    for key in OmegaConf.missing_keys(cfg) if not options else ():
        OmegaConf.update(cfg, key, "given")
    return cfg


def values(key, swept):
    """What a sweep gives a key: its choices, or the ends of its interval."""
    override = OverridesParser.create().parse_override(f"{key}={swept}")
    found = override.value()
    return (
        [str(found.start), str(found.end)]
        if override.is_interval_sweep()
        else [*override.sweep_string_iterator()]
    )


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_is_built(name, tmp_path):
    """The first and the last job of each; every choice between them is there."""
    if name in PLUGINS:
        pytest.importorskip(PLUGINS[name])
    written = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    assert written["output"] == f"runs/{name}/${{job_name:}}"
    swept = {
        key: values(key, given) for key, given in written["hydra"]["sweeper"]["params"].items()
    }
    for group in (key for key in swept if (CONF / key).is_dir()):
        assert all((CONF / group / f"{choice}.yaml").is_file() for choice in swept[group])
    for i in (0, -1):
        job = [f"{key}={found[i]}" for key, found in swept.items()]
        assert isinstance(
            cli.build(composed(f"+sweeps={name}", f"output={tmp_path}", *job)), Experiment
        )


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_says_how_it_is_run(name):
    package, command, what, *_ = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert package == "# @package _global_"
    assert re.match(rf"# python scripts/train\.py \+sweeps={name}\b", command)
    assert what.startswith("# ")


def test_groups_grow_as_prompts_shrink():
    sizes = {
        r: composed("+sweeps=group_size", "output=x", f"data.repeats={r}").data.prompts
        for r in (4, 32)
    }
    assert sizes == {4: 48, 32: 6}


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    """Launches a sweep of a stand-in for training; the exit code, the lines of stderr, and the folders of its jobs."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.chdir(tmp_path)

    def launch(train, *overrides):
        outputs = []

        def main(cfg):
            outputs.append(cfg.output)
            return train(cfg)

        main = hydra.main(version_base="1.3", config_path=cli.CONF, config_name="train")(
            cli.job(main)
        )
        monkeypatch.setattr(sys, "argv", ["train.py", *overrides])
        code = 0
        try:
            cli.run(main)
        except SystemExit as left:
            code = left.code
        return code, capsys.readouterr().err.strip().splitlines(), outputs

    yield launch
    signal.signal(signal.SIGTERM, handler)
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


def test_jobs_have_a_folder_each_and_the_same_again(sweep, tmp_path):
    command = [
        "+sweeps=clip_range",
        "seed=1,0",
        "clipping=guard",
        "clipping.high=1e-6,2e-6",
        "logger=none",
    ]
    names = [
        f"clipping.high={high}_clipping=guard_seed={seed}"
        for high in ("1e-06", "2e-06")
        for seed in (0, 1)
    ]
    for overrides in (command, command[::-1]):
        code, _, outputs = sweep(lambda cfg: None, *overrides)
        assert code == 0
        assert sorted(outputs) == [f"runs/clip_range/{name}" for name in names]
    assert not list(tmp_path.iterdir())


def test_a_name_is_a_name_of_a_folder(sweep):
    code, _, outputs = sweep(
        lambda cfg: None, "-m", "output=runs/${job_name:}", "backbone.model=/a b/c", "eval.gold={}"
    )
    assert (code, outputs) == (0, ["runs/backbone.model=-a-b-c_eval.gold="])
    long = [f"backbone.model={'a' * 300}{letter}" for letter in "bc"]
    found = [sweep(lambda cfg: None, "-m", "output=${job_name:}", model)[2][0] for model in long]
    assert all(len(name) < 255 for name in found)
    assert found[0] != found[1]


def failing(cfg):
    """Fails in three ways, by its seed."""
    for seed, error in enumerate(
        [ConfigError("seed=0 is bad"), RunError("it broke"), OSError("disk\nfull")]
    ):
        if cfg.seed == seed:
            raise error


def test_a_job_that_fails_stops_no_other_and_is_listed(sweep, tmp_path):
    code, lines, outputs = sweep(failing, "-m", "seed=0,1,2,3", "output=runs/${job_name:}")
    assert outputs == [f"runs/seed={seed}" for seed in range(4)]
    assert code == 1
    told = ["seed=0: seed=0 is bad", "seed=1: it broke", "seed=2: OSError: disk full"]
    assert lines[-4] == "3 failed; the same command runs no other job again:"
    assert [line.strip() for line in lines[-3:]] == told
    assert [line for line in lines if line.startswith("error: ")] == [
        f"error: {line}" for line in told
    ]
    assert sum(line.startswith("Traceback") for line in lines) == 1
    assert not list(tmp_path.iterdir())


def test_a_single_run_that_fails_is_no_list(sweep):
    assert sweep(failing, "seed=0", "output=x")[:2] == (2, ["error: seed=0 is bad"])
    assert sweep(failing, "seed=1", "output=x")[:2] == (1, ["error: it broke"])


def test_a_multirun_that_cannot_be_composed_leaves_nothing(sweep, tmp_path):
    code, lines, outputs = sweep(failing, "-m", "clipping=guard,gard")
    assert (code, len(lines), outputs) == (2, 1, [])
    assert "clipping/gard" in lines[0]
    assert not list(tmp_path.iterdir())


OPTUNA = ("+sweeps=optuna", "clipping=guard", "hydra.sweeper.n_trials=4")


def test_optuna_searches_by_what_a_job_returns_and_goes_on(sweep, tmp_path):
    """The second trial never gets to the proxy, the third fails: the best of the other two is told."""
    pytest.importorskip(PLUGINS["optuna"])
    seen = []

    def train(cfg):
        seen.append((cfg.optim.lr, cfg.clipping.high))
        if len(seen) % 4 == 3:
            raise RunError("it broke")
        return None if len(seen) % 4 == 2 else cfg.optim.lr

    code, lines, outputs = sweep(train, *OPTUNA)
    assert code == 1
    assert lines[-1].endswith(": it broke")
    assert len(set(outputs)) == 4
    assert all(1e-5 <= lr <= 1e-3 and 5e-7 <= high <= 2e-5 for lr, high in seen)
    (best,) = tmp_path.glob("runs/multirun/*/optimization_results.yaml")
    assert yaml.safe_load(best.read_text())["best_value"] == max(seen[0][0], seen[3][0])
    assert sweep(train, *OPTUNA)[2] == outputs


def test_optuna_without_a_trial_that_succeeds(sweep):
    pytest.importorskip(PLUGINS["optuna"])
    pytest.importorskip(
        "optuna"
    ).logging.disable_default_handler()  # it would write to another test's stream

    def train(cfg):
        raise RunError("it broke")

    code, lines, outputs = sweep(train, *OPTUNA)
    assert (code, len(outputs)) == (1, 4)
    assert not any("Traceback" in line for line in lines)


def test_slurm_asks_for_what_the_template_says():
    pytest.importorskip(PLUGINS["slurm"])
    launcher = composed("hydra/launcher=slurm", return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.nodes, launcher.gpus_per_node, launcher.additional_parameters) == (
        1,
        1,
        {"requeue": True},
    )
    assert launcher.max_num_timeout > 0
    assert launcher.submitit_folder.endswith("/.submitit/%j")


def test_the_wandb_sweep_sets_what_there_is():
    found = yaml.safe_load((FOLDER / "wandb.yaml").read_text(encoding="utf-8"))
    assert (cli.ROOT / found["program"]).is_file()
    assert found["command"] == ["${env}", "python", "${program}", "${args_no_hyphens}"]
    choices = {
        key: given["value"] if "value" in given else given["min"]
        for key, given in found["parameters"].items()
    }
    cfg = composed("output=x", *(f"{key}={value}" for key, value in choices.items()))
    assert isinstance(cli.build(cfg), Experiment)
    name = found["metric"]["name"]
    assert name.startswith("eval/gold/")
    assert found["metric"]["goal"] == "maximize"
