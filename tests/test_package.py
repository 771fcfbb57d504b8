"""The package is whole: one version, a licence, what the wheel holds, a citation, true guides."""

import datetime
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import Distribution

import pytest
import yaml

import grpo_guard
from grpo_guard.console import cli

PROJECT = tomllib.loads((cli.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((cli.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
GUIDES = ("CONTRIBUTING.md", "SECURITY.md", "README.md")
NOT_BUILT = (
    ".*",
    "__pycache__",
    "*.egg-info",
    "build",
    "runs",
    "outputs",
    "wandb",
    "tests",
    "docs",
)
"""Files of the repository that a wheel does not need."""
BUILD = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
"""What `pip wheel` and `uv build` call, without the environment that they download."""
INSTALLED_EXTRAS = ("ocr", "serve", "zero", "wandb", "report")
"""Extras whose packages the plain install already brings."""
NAMED_BY_USERS = (
    "torch", "diffusers", "hydra-core", "omegaconf", "wandb", "open_clip_torch", "deepspeed",
)  # fmt: skip
"""Packages that the plain install must bring."""


@pytest.fixture(scope="session")
def wheel_file(tmp_path_factory):
    """Return a wheel of the repository, built in a copy and without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "repository"
    shutil.copytree(cli.ROOT, copy, ignore=shutil.ignore_patterns(*NOT_BUILT))
    subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)], cwd=copy, check=True, capture_output=True
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def wheel(wheel_file):
    with zipfile.ZipFile(wheel_file) as archive:
        yield archive


@pytest.fixture(scope="session")
def command(wheel_file, tmp_path_factory):
    """Install the wheel in an environment without the checkout; return its grpo-guard command.

    The environment borrows the installed packages of this one, but not its link to the checkout.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    with zipfile.ZipFile(wheel_file) as archive:
        archive.extractall(site)
    (installed,) = Distribution.discover(path=[str(site)], name="grpo_guard")
    (program,) = installed.entry_points
    assert program.name == "grpo-guard"
    module, function = program.value.split(":")
    run = f"from {module} import {function}; {function}()"
    return [str(folder / "bin/python"), "-c", run]


def find_metadata(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return name


def read_metadata(wheel):
    return wheel.read(find_metadata(wheel)).decode()


def names_of(requirements):
    return [re.match(r"[\w-]+", requirement)[0] for requirement in requirements]


def test_version_is_the_same_everywhere(wheel):
    version = grpo_guard.__version__
    assert f"\nVersion: {version}\n" in read_metadata(wheel)
    assert CITATION["version"] == version
    changelog = (cli.ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", changelog, re.MULTILINE)
    assert headings[:2] == ["Unreleased", f"{version} - {CITATION['date-released']}"]


def test_wheel_has_licence_and_types(wheel):
    folder = find_metadata(wheel).removesuffix("METADATA")
    licence = wheel.read(f"{folder}licenses/LICENSE").decode()
    assert licence == (cli.ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "\nLicense-Expression: Apache-2.0\n" in read_metadata(wheel)
    assert "grpo_guard/py.typed" in wheel.namelist()


def test_wheel_has_all_code_settings_and_assets(wheel):
    assets = (cli.ROOT / "grpo_guard/assets").rglob("*")
    code = (cli.ROOT / "grpo_guard").rglob("*.py")
    needed = {path for path in [*assets, *code] if path.is_file() and path.suffix != ".pyc"}
    needed = {str(path.relative_to(cli.ROOT)) for path in needed}
    settings = [*(cli.ROOT / "conf").rglob("*.yaml"), *(cli.ROOT / "sweeps").rglob("*.yaml")]
    needed |= {f"grpo_guard/{path.relative_to(cli.ROOT)}" for path in settings}
    assert any(name.endswith(".safetensors") for name in needed)
    assert sorted(needed - set(wheel.namelist())) == []


def test_the_wheel_trains_and_compares_outside_the_checkout(command, tmp_path):
    smallest = [
        "data.prompts=1",
        "data.repeats=2",
        "updates=1",
        "microbatch=2",
        "eval.prompts=2",
        "eval.pictures=2",
    ]
    train = ["train", "reward=ocr", "iterations=1", "logger=none", "output=run", *smallest]
    for arguments in (train, ["compare", "run"]):
        done = subprocess.run(
            [*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "compare/index.html").is_file()
    where = [command[0], "-c", "import grpo_guard; print(grpo_guard.__file__)"]
    place = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert not place.startswith(str(cli.ROOT))


def test_licence_is_whole():
    text = (cli.ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert re.findall(r"^   (\d)\. [A-Z]", text, re.MULTILINE) == list("123456789")
    assert "END OF TERMS AND CONDITIONS" in text
    assert "assets" in (cli.ROOT / "README.md").read_text(encoding="utf-8").split("## Licence")[1]


def test_citation_has_the_required_fields():
    assert CITATION["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(CITATION)
    assert CITATION["license"] == PROJECT["license"]
    assert isinstance(CITATION["date-released"], datetime.date)
    (paper,) = CITATION["references"]
    assert {"type", "title", "authors"} <= set(paper)
    assert paper["url"].endswith("2510.22319")
    assert all(set(author) == {"family-names", "given-names"} for author in paper["authors"])


@pytest.mark.parametrize("guide", GUIDES)
def test_links_and_paths_exist(guide):
    text = (cli.ROOT / guide).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    paths = re.findall(r"`((?:grpo_guard|scripts|tests|conf|docs|requirements)/[\w./-]*)`", text)
    assert [path for path in [*links, *paths] if not (cli.ROOT / path).exists()] == []


@pytest.mark.parametrize("target", ["setup", "check", "test"])
def test_contributing_names_targets_of_the_makefile(target):
    makefile = (cli.ROOT / "Makefile").read_text(encoding="utf-8")
    assert target in (cli.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("extra", INSTALLED_EXTRAS)
def test_an_extra_repeats_requirements_of_the_plain_install(extra):
    extras = PROJECT["optional-dependencies"]
    assert set(extras[extra]) <= set(PROJECT["dependencies"])


def test_all_and_dev_cover_every_extra():
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]
    covered = re.search(r"\[(.+)\]", everything)[1].split(",")
    assert sorted(covered) == sorted(set(extras) - {"all", "docs", "dev"})
    assert "grpo_guard[all]" in extras["dev"]


def test_plain_install_brings_the_main_libraries():
    assert set(NAMED_BY_USERS) <= set(names_of(PROJECT["dependencies"]))


def test_workflow_runs_the_checks():
    workflow = (cli.ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    (job,) = yaml.safe_load(workflow)["jobs"].values()
    assert {"run": ".ci/run"} in job["steps"]
    assert (cli.ROOT / ".ci/run").stat().st_mode & 0o111


@pytest.mark.parametrize("form", ["bug", "question"])
def test_issue_forms_have_what_github_demands(form):
    file = cli.ROOT / ".github/ISSUE_TEMPLATE" / f"{form}.yml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(content)
    identifiers = [field["id"] for field in content["body"]]
    assert len(set(identifiers)) == len(identifiers)
    assert all(field["attributes"]["label"] for field in content["body"])
