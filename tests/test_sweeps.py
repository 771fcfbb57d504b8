"""Every job of every sweep can be built; a sweep resumes, and continues past jobs that fail."""

import re
import sys
from pathlib import Path

import hydra
import pytest
import yaml
from composing import compose_run
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser

from grpo_guard.console import cli, errors, multirun
from grpo_guard.experiment import Experiment
from grpo_guard.schema import ConfigError, RunError

CONF = Path(cli.CONF)
FOLDER = cli.ROOT / "sweeps"
SWEEPS = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "wandb")
PLUGINS = {
    "optuna": "hydra_plugins.hydra_optuna_sweeper",
    "slurm": "hydra_plugins.hydra_submitit_launcher",
}


def values(key, swept):
    """Return the values that a sweep gives a key: its choices, or the ends of its interval."""
    override = OverridesParser.create().parse_override(f"{key}={swept}")
    if not override.is_sweep_override():
        return [str(swept)]
    if override.is_interval_sweep():
        interval = override.value()
        return [str(interval.start), str(interval.end)]
    return list(override.sweep_string_iterator())


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_is_built(name, tmp_path):
    """The first and the last job can be built, and the choices between them exist."""
    if name in PLUGINS:
        pytest.importorskip(PLUGINS[name])
    config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    assert config["output"] == f"runs/{name}/${{job_name:}}"
    params = config["hydra"]["sweeper"]["params"]
    swept = {key: values(key, text) for key, text in params.items()}
    for group in (key for key in swept if (CONF / key).is_dir()):
        assert all((CONF / group / f"{choice}.yaml").is_file() for choice in swept[group])
    for i in (0, -1):
        job = [f"{key}={choices[i]}" for key, choices in swept.items()]
        cfg = compose_run(f"+sweeps={name}", f"output={tmp_path}", *job)
        assert isinstance(cli.build(cfg), Experiment)


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_says_how_it_is_run(name):
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    package, command, description, *_ = text.splitlines()
    assert package == "# @package _global_"
    assert re.match(rf"# python scripts/train\.py \+sweeps={name}\b", command)
    assert description.startswith("# ")


def test_groups_grow_as_prompts_shrink():
    sizes = {}
    for repeats in (4, 32):
        cfg = compose_run("+sweeps=group_size", "output=x", f"data.repeats={repeats}")
        sizes[repeats] = cfg.data.prompts
    assert sizes == {4: 48, 32: 6}


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    """Return a function that launches a sweep of a stand-in for training.

    It returns the exit code, the lines of stderr, and the folders of the jobs.
    """
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
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


def succeed(cfg):
    """Stand in for a training that ends well."""


def fail_by_seed(cfg):
    """Fail in three ways, depending on the seed."""
    errors = [ConfigError("seed=0 is bad"), RunError("it broke"), OSError("disk\nfull")]
    if cfg.seed < len(errors):
        raise errors[cfg.seed]


def break_down(cfg):
    raise RunError("it broke")


def test_a_job_has_a_folder_of_its_own_and_the_same_every_time(sweep, tmp_path):
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
        code, _, outputs = sweep(succeed, *overrides)
        assert code == 0
        assert sorted(outputs) == [f"runs/clip_range/{name}" for name in names]
    assert not list(tmp_path.iterdir())


def test_a_multirun_counts_its_jobs_and_knows_what_varies(sweep, monkeypatch):
    for key in (multirun.JOBS, multirun.VARIED):
        monkeypatch.setenv(key, "")
    lines = []
    sweep(
        lambda _: lines.append(multirun.describe_job()),
        *("+sweeps=clip_range", "seed=1,2", "clipping=guard", "clipping.high=1e-6", "logger=none"),
    )
    assert lines == ["job 1 of 2: seed=1", "job 2 of 2: seed=2"]


def test_immaterial_settings_are_not_in_a_name(sweep):
    overrides = ["resume=never", "strategy.threads=1", "logger=none", "checkpoint.every=2"]
    output = "output=runs/${job_name:}"
    code, lines, outputs = sweep(succeed, "-m", output, "seed=3", *overrides)
    assert (code, lines, outputs) == (0, [], ["runs/seed=3"])


def test_a_job_name_can_be_the_name_of_a_folder(sweep):
    code, _, outputs = sweep(
        succeed, "-m", "output=runs/${job_name:}", "backbone.model=/a b/c", "eval.gold={}"
    )
    assert (code, outputs) == (0, ["runs/backbone.model=-a-b-c_eval.gold="])
    models = [f"backbone.model={'a' * 300}{letter}" for letter in "bc"]
    names = [sweep(succeed, "-m", "output=${job_name:}", model)[2][0] for model in models]
    assert all(len(name) < 255 for name in names)
    assert names[0] != names[1]


def test_a_job_that_fails_does_not_stop_the_others(sweep, tmp_path):
    code, lines, outputs = sweep(fail_by_seed, "-m", "seed=0,1,2,3", "output=runs/${job_name:}")
    assert outputs == [f"runs/seed={seed}" for seed in range(4)]
    assert code == errors.FAILED
    failures = ["seed=0: seed=0 is bad", "seed=1: it broke", "seed=2: OSError: disk full"]
    assert lines[-4] == "3 failed; the same command runs only these jobs again:"
    assert [line.strip() for line in lines[-3:]] == failures
    reports = [line for line in lines if line.startswith("error: ")]
    assert reports == [f"error: {failure}" for failure in failures]
    assert sum(line.startswith("Traceback") for line in lines) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("output", [[], ["output=runs/${now:%f}_${job_name:}"]])
def test_a_sweep_with_the_time_in_its_folders_does_not_promise_to_find_them(sweep, output):
    code, lines, _ = sweep(fail_by_seed, "-m", "seed=1,3", *output)
    assert code == errors.FAILED
    same = "the same command would begin every job anew, so give these settings alone"
    assert lines[-2:] == [f"1 failed; {same}:", "  seed=1: it broke"]


def test_a_single_run_that_fails_prints_no_list(sweep):
    code, lines, _ = sweep(fail_by_seed, "seed=0", "output=x")
    assert (code, lines) == (errors.REFUSED, ["error: seed=0 is bad"])
    code, lines, _ = sweep(fail_by_seed, "seed=1", "output=x")
    assert (code, lines) == (errors.FAILED, ["error: it broke"])


def test_a_multirun_that_cannot_be_composed_leaves_nothing(sweep, tmp_path):
    code, lines, outputs = sweep(succeed, "-m", "clipping=guard,gard")
    assert (code, len(lines), outputs) == (errors.REFUSED, 1, [])
    assert lines[0] == "error: clipping=gard is no choice; did you mean guard?"
    assert not list(tmp_path.iterdir())


OPTUNA = ("+sweeps=optuna", "clipping=guard", "hydra.sweeper.n_trials=4")


def test_optuna_maximises_what_a_job_returns_and_resumes(sweep, tmp_path):
    """The second trial returns no number and the third fails: the best of the others is kept."""
    pytest.importorskip(PLUGINS["optuna"])
    trials = []

    def train(cfg):
        trials.append((cfg.optim.lr, cfg.clipping.high))
        if len(trials) % 4 == 3:
            raise RunError("it broke")
        return None if len(trials) % 4 == 2 else cfg.optim.lr

    code, lines, outputs = sweep(train, *OPTUNA)
    assert code == errors.FAILED
    assert lines[-1].endswith(": it broke")
    assert len(set(outputs)) == 4
    assert all(1e-5 <= lr <= 1e-3 and 5e-7 <= high <= 2e-5 for lr, high in trials)
    (results,) = tmp_path.glob("runs/multirun/*/optimization_results.yaml")
    best = yaml.safe_load(results.read_text())["best_value"]
    assert best == max(trials[0][0], trials[3][0])
    assert sweep(train, *OPTUNA)[2] == outputs


def test_optuna_without_a_trial_that_succeeds(sweep):
    pytest.importorskip(PLUGINS["optuna"])
    # Its default handler would write to the stream of another test.
    pytest.importorskip("optuna").logging.disable_default_handler()
    code, lines, outputs = sweep(break_down, *OPTUNA)
    assert (code, len(outputs)) == (errors.FAILED, 4)
    assert not any("Traceback" in line for line in lines)


def test_slurm_gets_what_the_template_says():
    pytest.importorskip(PLUGINS["slurm"])
    launcher = compose_run("hydra/launcher=slurm", return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert launcher.nodes == launcher.gpus_per_node == 1
    assert launcher.additional_parameters == {"requeue": True}
    assert launcher.max_num_timeout > 0
    assert launcher.submitit_folder.endswith("/.submitit/%j")


def test_the_wandb_sweep_sets_keys_that_exist():
    config = yaml.safe_load((FOLDER / "wandb.yaml").read_text(encoding="utf-8"))
    assert (cli.ROOT / config["program"]).is_file()
    assert config["command"] == ["${env}", "python", "${program}", "${args_no_hyphens}"]
    overrides = [
        f"{key}={parameter['value'] if 'value' in parameter else parameter['min']}"
        for key, parameter in config["parameters"].items()
    ]
    assert isinstance(cli.build(compose_run("output=x", *overrides)), Experiment)
    assert config["metric"]["name"].startswith("eval/gold/")
    assert config["metric"]["goal"] == "maximize"


@pytest.mark.parametrize("name", [name for name in SWEEPS if name.startswith("over_optimization")])
def test_the_study_trains_by_its_own_recipe(name):
    cfg = compose_run(f"+sweeps={name}", "output=x", "seed=1")
    assert (cfg.iterations, cfg.eval.prompts, cfg.eval.train_prompts) == (200, 512, 192)
    assert cfg.clipping.adaptation.per_step is False
