"""What the scripts without a configuration have in common: their help, and options that are the same everywhere."""

import re
import signal
import sys

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import calibrate_geneval
import compare
import evaluate
import sample
import train
from grpo_guard.schema import ConfigError
from lib import cli

SCRIPTS = {script.__name__: script for script in (calibrate_geneval, compare, evaluate, sample)}


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_has_examples(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        SCRIPTS[name].main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    first = lines.index("examples:") + 1
    assert lines[first].startswith(f"  python scripts/{name}.py ")


def options(script):
    """Type, metavar, default and help of every option."""
    found = {
        action.option_strings[-1]: action
        for action in script.parser()._actions
        if action.option_strings
    }
    return {key: (a.type, a.metavar, a.default, a.help) for key, a in found.items()}


def test_the_same_option_is_the_same_everywhere():
    """But for what is written, and for the prompts that are drawn unless others are given."""
    first, second = options(evaluate), options(sample)
    assert set(first) & set(second) == {
        *("--help", "--checkpoint", "--prompts", "--each", "--steps", "--seed", "--device", "--out")
    }
    apart = {key for key in set(first) & set(second) if first[key] != second[key]}
    assert apart == {"--prompts", "--out"}
    assert options(calibrate_geneval)["--device"] == first["--device"]
    for script in SCRIPTS.values():
        kind, _, default, words = options(script)["--out"]
        assert (kind, default) == (options(compare)["--out"][0], None)
        assert words.startswith("where to write")
        assert all(told[3] for told in options(script).values())


@pytest.mark.parametrize(
    "given",
    [["clipping=vanilla", "~kl", "--cfg", "job"], ["--cfg", "job", "clipping=vanilla", "~kl"]],
    ids=["options last", "options first"],
)
def test_options_stand_anywhere(given, monkeypatch, capsys):
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["train.py", *given, "--package", "clipping"])
    cli.run(train.main)
    GlobalHydra.instance().clear()
    signal.signal(signal.SIGTERM, handler)
    assert "high: 0.0001" in capsys.readouterr().out
    assert cli.options_first(["a=1", "-m", "b=2", "~c", "--cfg", "job"]) == [
        "-m",
        "--cfg",
        "job",
        "a=1",
        "b=2",
        "~c",
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda config: config.pop("watch"),
            "watch must be given, as scripts/train.py --cfg job has it",
        ),
        (lambda config: config.update(threads=1), "threads is unknown; leave it out"),
        (
            lambda config: config["clipping"].update(hihg=1),
            "clipping.hihg is unknown; leave it out",
        ),
    ],
)
def test_a_run_folder_of_another_version_names_the_key(change, told, tmp_path):
    with initialize_config_dir(cli.CONF, version_base="1.3"):
        config = OmegaConf.to_container(
            compose("train", ["output=unused", "logger=none"]), resolve=True
        )
    change(config)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(
        ConfigError, match=rf"^{re.escape(str(tmp_path))}/config.yaml: {re.escape(told)}$"
    ):
        cli.load(tmp_path)
