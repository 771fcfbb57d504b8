"""Scripts without a configuration share options; runs of other versions are refused."""

import importlib
import re
import sys

import pytest
import yaml
from composing import EARLIER_CONFIG, compose_run
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import build_tiny
from grpo_guard.command import (
    bench,
    calibrate,
    compare,
    evaluate,
    sample,
    serve,
    train,
    verify,
    wandb_report,
)
from grpo_guard.console import cli, helping
from grpo_guard.schema import ConfigError

MODULES = sorted(
    ".".join(path.relative_to(cli.ROOT / "scripts").with_suffix("").parts)
    for path in (cli.ROOT / "scripts").rglob("*.py")
)
SCRIPTS = {
    "calibrate_geneval": calibrate,
    "compare": compare,
    "evaluate": evaluate,
    "sample": sample,
}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_can_be_imported(name):
    """No test runs the scripts that take minutes; this finds names that they lack."""
    importlib.import_module(name)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_has_examples(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        SCRIPTS[name].main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    first = lines.index("examples:") + 1
    assert lines[first].startswith(f"  python scripts/{name}.py ")


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(
    "make", [*(script.parser for script in SCRIPTS.values()), bench.make_parser, verify.parser]
)
def test_help_fits_the_terminal(make, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = make().format_help()
    assert [line for line in text.splitlines() if len(line) > columns] == []
    # paragraphs fill the lines
    assert max(map(len, text.splitlines())) > columns - 20


@pytest.mark.parametrize("make", [wandb_report.parser, build_tiny.make_parser])
def test_help_without_long_paragraphs_fits_the_terminal(make, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert [line for line in make().format_help().splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("name", helping.PURPOSES)
def test_help_of_choices_fits_eighty_columns(name):
    text = helping.describe_command(cli.ROOT / "conf", name)
    assert [line for line in text.splitlines() if len(line) > 80] == []
    # a setting and a choice that this command has
    assert helping.SETTINGS[name].split(".")[0].split("=")[0] in text
    assert (helping.MULTIRUN in text) == (name != "serve")


@pytest.mark.parametrize("option", ["-m", "--multirun"])
def test_a_server_is_no_sweep(option, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["serve_reward.py", option, "reward=pickscore,hpsv2"])
    with pytest.raises(SystemExit, match="2"):
        serve.start()
    error = capsys.readouterr().err
    assert error.startswith("error: -m runs several jobs, but this command")
    assert error.count("\n") == 1


def options(script):
    """Return (type, metavar, default, help) of every option of a script."""
    actions = [action for action in script.parser()._actions if action.option_strings]
    return {a.option_strings[-1]: (a.type, a.metavar, a.default, a.help) for a in actions}


def test_the_same_option_is_the_same_everywhere():
    """The exceptions are --out, and --prompts, whose default differs."""
    first, second = options(evaluate), options(sample)
    assert set(first) & set(second) == {
        *("--help", "--version", "--checkpoint", "--prompts", "--each", "--steps", "--seed"),
        *("--device", "--out", "--resolution"),
    }
    different = {key for key in set(first) & set(second) if first[key] != second[key]}
    assert different == {"--prompts", "--out"}
    assert options(calibrate)["--device"] == first["--device"]
    for script in SCRIPTS.values():
        kind, _, default, words = options(script)["--out"]
        assert (kind, default) == (options(compare)["--out"][0], None)
        assert words.startswith("where to write")
        assert all(option[3] for option in options(script).values())


@pytest.mark.parametrize(
    "arguments",
    [["clipping=vanilla", "~kl", "--cfg", "job"], ["--cfg", "job", "clipping=vanilla", "~kl"]],
    ids=["options last", "options first"],
)
def test_options_and_overrides_may_be_mixed(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments, "--package", "clipping"])
    cli.run(train.main)
    GlobalHydra.instance().clear()
    assert "high: 0.0001" in capsys.readouterr().out
    mixed = ["a=1", "-m", "b=2", "~c", "--cfg", "job"]
    assert cli.options_first(mixed) == ["-m", "--cfg", "job", "a=1", "b=2", "~c"]


def write_config(folder, config):
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda config: config.pop("watch"),
            "watch is missing; add it as in the output of scripts/train.py --cfg job",
        ),
        (lambda config: config.update(threads=1), "threads is unknown; remove it"),
        (
            lambda config: config["clipping"].update(hihg=1),
            "clipping.hihg is unknown; remove it",
        ),
    ],
)
def test_a_run_with_unknown_or_missing_keys_is_refused(change, message, tmp_path):
    config = OmegaConf.to_container(compose_run("output=unused", "logger=none"), resolve=True)
    change(config)
    write_config(tmp_path, config)
    file = re.escape(f"{tmp_path}/config.yaml")
    with pytest.raises(ConfigError, match=rf"^{file}: {re.escape(message)}$"):
        cli.load(tmp_path)


@pytest.mark.parametrize(
    ("keys", "signs"),
    [
        (["old", "tail"], "old, tail"),
        (["_target_"], "_target_: grpo_guard.train.Experiment"),
        (["clipping"], "no clipping.name"),
    ],
)
def test_a_run_of_an_earlier_version_is_refused(keys, signs, tmp_path):
    write_config(tmp_path, {key: EARLIER_CONFIG[key] for key in keys})
    message = (
        f"{tmp_path}/config.yaml was written by an earlier version of grpo_guard (it has {signs});"
        " continue with that version or start a new run"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        cli.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read ("),
        ("a: [", "cannot be read ("),
        ("", "is not the configuration of a run; give a run folder"),
        ("- a", "is not the configuration of a run; give a run folder"),
    ],
)
def test_a_folder_without_a_configuration_is_refused(content, message, tmp_path):
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path}/config.yaml {message}")):
        cli.load(tmp_path)
