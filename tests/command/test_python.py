"""Python code composes and runs experiments without a command line."""

import pytest

import grpo_guard
from grpo_guard.command import training
from grpo_guard.console import claim
from grpo_guard.logger.folder import is_finished
from grpo_guard.schema import ConfigError

SMALLEST = (
    *("logger=none", "data.prompts=1", "data.repeats=2", "updates=1", "microbatch=2"),
    *("eval.prompts=2", "eval.pictures=2", "watch=none"),
)


def test_an_experiment_is_composed():
    experiment = grpo_guard.compose(["clipping=vanilla", "iterations=3"])
    assert (experiment.clipping.name, experiment.iterations) == ("vanilla", 3)
    assert experiment.output.endswith("_pickscore_vanilla_seed0")


def test_sweeps_are_where_the_command_finds_them():
    assert grpo_guard.compose(["+sweeps=noise_level"]).sde


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("clipping=gard", "gard"),
        ("steps=1", "steps=1 leaves no trained step"),
        ("published=flux_dance_guard", "published=flux_dance_guard does not go with"),
    ],
)
def test_overrides_that_cannot_be_used_are_refused(override, words):
    with pytest.raises(ConfigError, match=words):
        grpo_guard.compose([override])


def test_several_processes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^Python code runs strategy=single"):
        grpo_guard.run(
            ["strategy=ddp", "strategy.processes=2", "microbatch=48", f"output={tmp_path}/run"]
        )
    assert not list(tmp_path.iterdir())


def test_a_run_is_trained_and_continues(tmp_path):
    settings = [*SMALLEST, f"output={tmp_path}/run"]
    folder = grpo_guard.run([*settings, "iterations=1"])
    assert folder == tmp_path / "run"
    assert is_finished(folder, 1)
    assert is_finished(grpo_guard.run([*settings, "iterations=2"]), 2)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_finished_run_is_uploaded_on_request(tmp_path, monkeypatch):
    uploads = []
    monkeypatch.setattr(claim, "check_hub", lambda repository: None)
    monkeypatch.setattr(training, "push_checkpoint", lambda *arguments: uploads.append(arguments))
    settings = [*SMALLEST, "iterations=1", f"output={tmp_path}/run"]
    folder = grpo_guard.run(settings)
    assert uploads == []
    grpo_guard.run([*settings, "checkpoint.push_to_hub=me/model"])
    assert uploads == [(folder / "checkpoints/000001", "me/model")]
