"""Every command of every document works, and the site builds: links, settings, messages, quotes."""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from composing import compose_run
from documents import (
    DOCUMENTS,
    START,
    all_commands,
    anchors,
    blocks,
    is_quoted,
    links,
    name_of,
    read,
    without_blocks,
)
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from toy import apply_objective, experiment, read_metrics

import grpo_guard.command.__main__
from grpo_guard.command import bench, calibrate, compare, evaluate, sample, verify
from grpo_guard.console import cli
from grpo_guard.experiment import Experiment
from grpo_guard.sde import schedule
from grpo_guard.sde.flow import Flow
from grpo_guard.sde.window import Window
from grpo_guard.serve import Service
from grpo_guard.train import train
from grpo_guard.types import Drift, Rows
from pages import choices, fields, messages, settings

DOCS = cli.ROOT / "docs"
SOURCE = "\n".join(map(read, sorted((cli.ROOT / "grpo_guard").rglob("*.py"))))
COMMANDS = all_commands()
OWN_FILES = ("my_reward", "my_objective")
"""Modules that guides write; tests of their own run these commands."""
PARSERS = {
    "compare": compare.parser,
    "sample": sample.parser,
    "evaluate": evaluate.parser,
    "calibrate_geneval": calibrate.parser,
    "verify_run": verify.parser,
}
SDE = Flow(level=0.7, window=Window())
PLUGINS = {"+sweeps=optuna": "hydra_optuna_sweeper", "slurm": "hydra_submitit_launcher"}
"""Parts of commands that need an extra."""
GENERATED = {"settings.md", "adr/index.md"}


def program(words):
    """Return the name of the script or subcommand that a command calls, and its arguments."""
    scripts = [i for i, word in enumerate(words) if word.startswith("scripts/")]
    start = scripts[0] if scripts else 1
    name = Path(words[start]).stem
    return {"serve": "serve_reward"}.get(name, name), words[start + 1 :]


PROGRAMS = {text: program(words) for text, words in COMMANDS.items()}


def first_value(override):
    """Return an override, or the first of the overrides that it sweeps over."""
    key, equals, value = override.partition("=")
    return override if value.startswith("[") else f"{key}{equals}{value.split(',')[0]}"


def is_checked(text):
    return not any(module in text for module in OWN_FILES)


def overrides_of(words):
    """Return the overrides among the arguments of a command that composes a run."""
    return [first_value(word) for word in words if not re.match(r"-|job$", word)]


def is_plain_choice(overrides):
    """Return whether a command only takes one choice, which tests/test_conf.py builds."""
    group = overrides[0].partition("=")[0] if overrides else ""
    return len(overrides) < 2 and (not overrides or Path(cli.CONF, group).is_dir())


RUNS = {
    text: overrides_of(words)
    for text, (name, words) in PROGRAMS.items()
    if name in ("train", "preflight") and is_checked(text)
}
COMPOSED = {text: overrides for text, overrides in RUNS.items() if not is_plain_choice(overrides)}


@pytest.mark.parametrize("text", COMPOSED)
def test_a_command_that_composes_a_run(text):
    for plugin, module in PLUGINS.items():
        if plugin in text:
            pytest.importorskip(f"hydra_plugins.{module}")
    cfg = compose_run(*COMPOSED[text], "output=unused", "logger=none")
    assert isinstance(cli.build(cfg), Experiment)


def test_commands_that_take_one_choice():
    plain = [overrides[0] for text, overrides in RUNS.items() if text not in COMPOSED and overrides]
    assert len(plain) > 5
    paths = [Path(cli.CONF, *override.split("=")).with_suffix(".yaml") for override in plain]
    assert [path for path in paths if not path.is_file()] == []


def test_commands_that_serve_a_reward():
    for text in COMMANDS:
        name, words = PROGRAMS[text]
        if name == "serve_reward" and "--help" not in words and is_checked(text):
            with initialize_config_dir(cli.CONF, version_base="1.3"):
                cfg = compose("serve", words, return_hydra_config=False)
            cfg.name = "unused"
            assert isinstance(cli.build_parts(cfg), Service)


def test_words_of_other_programs_lead_to_settings_that_exist():
    """The sizes in the table are those of the experiment that it names."""
    table = read(DOCS / "index.md").partition("## Words of other programs")[2].partition("\n## ")[0]
    cfg = compose_run("experiment=sd35_ocr", "output=unused")
    rows = table.partition("|---|---|\n")[2]
    keys = {key.partition("=")[0] for key in re.findall(r"`([a-z]+\.[\w.]+(?:=\S+)?)`", rows)}
    assert len(keys) > 10
    assert [key for key in keys if OmegaConf.select(cfg, key, default="none") == "none"] == []
    samples = cfg.data.prompts * cfg.data.repeats
    assert f"({cfg.data.prompts} x {cfg.data.repeats} = {samples})" in table
    assert f"({samples} / {cfg.updates} = {samples // cfg.updates})" in table


def test_commands_with_a_parser_are_parsed():
    for text in COMMANDS:
        name, words = PROGRAMS[text]
        if name in PARSERS and words:
            PARSERS[name]().parse_args(words)


def test_benchmarks_are_parsed():
    for text in COMMANDS:
        name, words = PROGRAMS[text]
        if name == "bench" and words:
            _, overrides = bench.make_parser().parse_known_args(words)
            assert all("=" in override for override in overrides), text


def test_programs_exist():
    for text in COMMANDS:
        if text.startswith("grpo-guard"):
            assert COMMANDS[text][1] in {*grpo_guard.command.__main__.COMMANDS, "--help"}, text
        else:
            assert (cli.ROOT / "scripts" / f"{PROGRAMS[text][0]}.py").is_file(), text
    assert sum(name == "train" for name, _ in PROGRAMS.values()) > 40


def test_python_of_the_quick_start(monkeypatch):
    (code,) = blocks(read(DOCS / "index.md"), "python")
    monkeypatch.setattr(grpo_guard, "run", grpo_guard.compose)
    names = {}
    exec(code, names)
    assert isinstance(names["experiment"], Experiment)
    assert names["folder"].iterations == 1


def test_targets_are_in_the_makefile():
    makefile = read(cli.ROOT / "Makefile")
    targets = set()
    for path in DOCUMENTS:
        shell = "\n".join(blocks(read(path), "bash"))
        targets |= set(re.findall(r"^make (\w+)", shell, re.MULTILINE))
        targets |= set(re.findall(r"`make (\w+)", without_blocks(read(path))))
    assert [t for t in sorted(targets) if not re.search(rf"^{t}:", makefile, re.MULTILINE)] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path):
    for target, anchor in links(path):
        page = (path.parent / target).resolve() if target else path
        if str(page.relative_to(cli.ROOT)).removeprefix("docs/") in GENERATED:
            continue
        assert page.exists(), target
        assert not anchor or anchor in anchors(page), f"{target}#{anchor}"


def test_quotes_of_code_are_true():
    pages = [cli.ROOT / "README.md", *(DOCS / "method").glob("*.md")]
    quotes = [quote for page in pages for quote in blocks(read(page), "python")]
    assert len(quotes) > 10
    assert [quote for quote in quotes if not is_quoted(quote, SOURCE)] == []


def test_every_objective_has_a_page():
    objectives = {path.stem for path in Path(cli.CONF, "clipping").glob("*.yaml")}
    pages = {path.stem for path in (DOCS / "method").glob("*.md")} - {"index", "steps"}
    assert pages == objectives
    overview = read(DOCS / "method/index.md")
    for name in objectives:
        page = read(DOCS / f"method/{name}.md")
        assert f"({name}.md)" in overview
        assert f"`clipping={name}`" in page
        assert all(f"## {part}" in page for part in ("Equation", "Code", "What it does to the"))


@pytest.mark.parametrize(
    ("page", "folder", "written"),
    [
        ("rewards.md", "conf/reward", "`{}`"),
        ("real_models.md", "conf/preset", "`preset={}`"),
        ("clusters.md", "conf/strategy", "`{}`"),
        ("method/steps.md", "conf/sde", "`{}`"),
        ("method/steps.md", "conf/sde/window", "`sde/window={}`"),
        ("sweeps.md", "sweeps", "{}"),
        ("recipes.md", "conf/published", "`{}`"),
    ],
)
def test_every_choice_is_on_its_page(page, folder, written):
    names = [path.stem for path in (cli.ROOT / folder).glob("*.yaml")]
    text = read(DOCS / page)
    assert [name for name in names if written.format(name) not in text] == []


def test_messages_that_are_explained_exist():
    text, _, rest = read(DOCS / "troubleshooting.md").partition("## All messages")
    quoted = re.findall(r"^\| `([^`]*…[^`]*|sde=ode[^`]*|a gradient[^`]*)` \|", text, re.MULTILINE)
    known = {" ".join(message.text.split()) for message in messages.list_messages()}
    assert len(quoted) > 15
    assert [message for message in quoted if message not in known] == []
    assert "<!-- all messages -->" in rest


def test_every_kind_of_message_is_listed():
    """A refusal, the end of a run, a rule of a type, and what a command says, are in the list."""
    lines = {message.line for message in messages.list_messages()}
    assert (
        "sde=ode has no noise, so there is no ratio to clip; choose sde=flow, dance or cps" in lines
    )
    assert "… of the images could not be scored, over max_failed=…; fix the reward …" in lines
    assert "… is outside (0, 1]; CPS turns noise by level * 90 degrees" in lines
    assert len(lines) > 150
    assert [message.text for message in messages.list_messages() if not message.remedy] == []


@pytest.fixture(scope="module")
def settings_page():
    """Return the page of all settings; making it raises MissingWords if a key has no words."""
    return settings.make_page()


def test_every_setting_has_words(settings_page):
    rows = re.findall(r"^\| (.*) \|$", settings_page, re.MULTILINE)
    cells = [re.split(r"(?<!\\) \| ", row) for row in rows]
    assert [row for row in cells if not all(cell.strip() for cell in row)] == []
    keys = {row[0].strip("`") for row in cells if len(row) == 4}
    for choice in ("clipping/guard", "backbone/sd3_medium", "reward/ocr", "strategy/fsdp"):
        group, name = choice.split("/")
        text = read(Path(cli.CONF) / f"{choice}.yaml") + read(Path(cli.CONF) / "train.yaml")
        own = choices.compose_choices()[group][name]
        assert {f"{group}.{key}" for key in own if not key.startswith("_")} <= keys, text
    assert {"seed", "steps", "checkpoint.best", "port", "clipping.adaptation.fraction"} <= keys


def test_a_setting_without_words_is_refused(monkeypatch):
    monkeypatch.setattr(fields, "read_field_docstrings", lambda component: {})
    with pytest.raises(choices.MissingWords, match=r"^clipping\.name has no docstring"):
        fields.list_settings("clipping", "guard")


@pytest.fixture
def own_objective(tmp_path, monkeypatch):
    """Write the file of docs/new_objective.md into the current folder."""
    (code,) = blocks(read(DOCS / "new_objective.md"), "python")
    (tmp_path / "my_objective.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_objective", None)


def test_the_objective_of_the_guide_trains(own_objective):
    (text,) = [text for text in COMMANDS if "my_objective" in text]
    spo = cli.build(compose_run(*PROGRAMS[text][1], "output=unused", "logger=none")).clipping
    assert (spo.name, type(spo).__name__) == ("spo", "Spo")
    (own_objective / "run").mkdir()
    train(experiment(own_objective / "run", clipping=spo, iterations=1), {})
    assert read_metrics(own_objective / "run")[0]["grad_norm"] > 0


def test_the_objective_of_the_guide_has_its_maximum_at_its_width(own_objective):
    """r A - |A| (r - 1)^2 / 2 high is largest where r - 1 has the sign of A and is `high`."""
    (text,) = [text for text in COMMANDS if "my_objective" in text]
    spo = cli.build(compose_run(*PROGRAMS[text][1], "output=unused", "logger=none")).clipping
    change = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0], dtype=torch.float64) * spo.high
    one = torch.ones_like(change)
    for sign in (1, -1):
        moved = Drift(along=sign * change, square=0 * one, std=one, gain=one, dimensions=65_536)
        rows = Rows(sample=torch.arange(5), step=0 * torch.arange(5), advantage=sign * one)
        loss = apply_objective(spo, moved, rows, schedule(SDE, torch.tensor([0.9, 0.5, 0]))).loss
        expected = -(change - change.square() / (2 * spo.high)) / 0.4
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-10, check_dtype=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site as `make docs` does; a broken link or anchor raises Abort."""
    pytest.importorskip("mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(cli.ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return folder


@pytest.mark.filterwarnings("default")
def test_the_site_is_whole(site):
    nav = re.findall(r"[\w/]+\.md", read(cli.ROOT / "mkdocs.yml").partition("\nnav:")[2])
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    decisions = {page for page in pages if page.startswith("adr/")}
    assert sorted(nav) == sorted((pages - decisions) | GENERATED)
    for page in pages | GENERATED:
        assert (site / page).with_suffix(".html").is_file()
    decision_list = read(site / "adr/index.html")
    assert all(Path(page).stem in decision_list for page in decisions)
    assert "clipping.adaptation.fraction" in read(site / "settings.html")
    assert "so there is no ratio to clip" in read(site / "troubleshooting.html")


def test_each_figure_of_the_site_has_a_name_and_is_a_link_to_its_file(site):
    text = read(site / "study/over_optimization.html")
    figures = re.findall(r'<a href="([^"]+)"><img alt="([^"]+)" src="([^"]+)"', text)
    written = read(DOCS / "study/over_optimization.md").count("![")
    assert len(figures) == text.count("<img") == written > 0
    for target, alt, source in figures:
        assert target == source
        assert alt
        assert (site / "study" / source).is_file()


def test_the_site_needs_no_network(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|link|iframe)\b[^>]*(?:src|href)=\"?([^\" >]+)", read(page)
        )
        assert [url for url in loaded if "//" in url] == [], page


def test_the_makefile_builds_the_site():
    makefile = read(cli.ROOT / "Makefile")
    (recipe,) = re.findall(r"^docs:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert "mkdocs build" in recipe
    config = yaml.safe_load(read(cli.ROOT / "mkdocs.yml"))
    assert config["strict"] is True
    assert f"{config['site_dir']}/" in read(cli.ROOT / ".gitignore").split()
    assert re.match(START, "python scripts/train.py")
