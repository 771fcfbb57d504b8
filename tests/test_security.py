"""Nothing that users hand in is executed: no pickle, eval or unsafe YAML in the package."""

import ast
import json
import runpy
from pathlib import Path

import pytest

from grpo_guard.console import cli

PACKAGE = cli.ROOT / "grpo_guard"
RUNS_CODE = {
    "eval",
    "exec",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "cloudpickle.load",
    "cloudpickle.loads",
    "marshal.loads",
    "shelve.open",
    "joblib.load",
    "yaml.load",
    "yaml.full_load",
    "yaml.unsafe_load",
    "os.system",
    "os.popen",
}
"""Calls that may run what they are given."""
ALLOWED = {
    # Between a process and a reader that it started itself.
    ("reward/_ocr_reader.py", "pickle.load"),
    # Makes only what torch writes into the index of a state.
    ("lifecycle/state_reader.py", "pickle.Unpickler"),
    # Annotations in the package's own source.
    ("console/source_text.py", "eval"),
}
"""Uses by file, each with its reason."""


def list_uses(source):
    """Yield the dotted names that a module calls or derives from, with the nodes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node
        elif isinstance(node, ast.ClassDef):
            yield from ((ast.unparse(base), node) for base in node.bases)


def has_keyword(call, name, value):
    return any(
        keyword.arg == name and getattr(keyword.value, "value", None) is value
        for keyword in call.keywords
    )


def find_faults(source, file=""):
    """Return what in a module may run what it reads."""
    faults = set()
    for name, node in list_uses(source):
        if name in RUNS_CODE and (file, name) not in ALLOWED:
            faults.add(name)
        if name == "torch.load" and not has_keyword(node, "weights_only", True):
            faults.add("torch.load without weights_only=True")
        if name in ("np.load", "numpy.load") and not has_keyword(node, "allow_pickle", False):
            faults.add("np.load without allow_pickle=False")
        if has_keyword(node, "shell", True) if isinstance(node, ast.Call) else False:
            faults.add("shell=True")
        if isinstance(node, ast.Call) and has_keyword(node, "trust_remote_code", True):
            faults.add("trust_remote_code=True")
    return faults


def files():
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def test_the_package_runs_nothing_that_it_reads():
    sources = {file: (PACKAGE / file).read_text(encoding="utf-8") for file in files()}
    faults = {file: find_faults(source, file) for file, source in sources.items()}
    assert {file: names for file, names in faults.items() if names} == {}
    # A name cannot be hidden by its import.
    hidden = [
        f"{file}: {line.strip()}"
        for file, source in sources.items()
        for line in source.splitlines()
        if line.strip().startswith(("from pickle ", "from yaml import load", "import pickle as"))
    ]
    assert hidden == []


def test_every_allowed_use_is_there():
    for file, name in ALLOWED:
        source = Path(PACKAGE / file).read_text(encoding="utf-8")
        assert name in find_faults(source), file


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(file)",
        "eval(text)",
        "yaml.load(file)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(file)",
        "subprocess.run(words, shell=True)",
        "class Reader(pickle.Unpickler): pass",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_uses_are_noticed(source):
    assert find_faults(source)


@pytest.mark.parametrize("source", ["model.eval()", "yaml.safe_load(file)", "json.loads(text)"])
def test_harmless_uses_are_let_through(source):
    assert not find_faults(source)


def audit(*packages):
    describe = runpy.run_path(str(cli.ROOT / "requirements/audit.py"))["describe"]
    return describe(json.dumps({"dependencies": packages}))


def test_the_audit_names_each_vulnerability():
    mended, still_open = (
        {"id": "X-1", "fix_versions": ["2", "3"]},
        {"id": "X-2", "fix_versions": []},
    )
    assert audit(
        {"name": "a", "version": "1", "vulns": [mended, still_open]},
        {"name": "b", "version": "1", "vulns": []},
        {"name": "c", "skip_reason": "not there"},
    ) == (["a 1: X-1; fixed in 2, 3", "a 1: X-2; open"], 2)


def test_an_audit_without_an_answer_knows_nothing():
    assert audit({"name": "c", "skip_reason": "not there"}) == ([], 0)
    describe = runpy.run_path(str(cli.ROOT / "requirements/audit.py"))["describe"]
    assert describe("") == describe("[]") == ([], 0)
