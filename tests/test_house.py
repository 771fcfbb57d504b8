"""House rules of the code: short modules, plain names, a docstring line for every field."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted([*ROOT.glob("grpo_guard/**/*.py"), *ROOT.glob("scripts/**/*.py")])
TESTS = sorted(ROOT.glob("tests/**/*.py"))
LONGEST_MODULE = 300
LONGEST_FUNCTION = 40
DEEPEST_NESTING = 3
VAGUE = {"found", "told", "said", "asked", "given", "shown"}
"""Participles that do not say what a variable holds."""
HEADLESS = ("Of ", "By ", "That ", "Which ")
"""Beginnings of a docstring that leave its sentence without a subject."""
BLOCKS = (ast.For, ast.While, ast.If, ast.With, ast.Try, ast.AsyncFor, ast.AsyncWith)


def name_of(path):
    return str(path.relative_to(ROOT))


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path):
    return [
        n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def nesting(node, depth=0):
    """Return how deeply blocks are nested; an elif counts as beside its if, not inside it."""
    deepest = depth
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        beside = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        inner = depth + (isinstance(child, BLOCKS) and not beside)
        deepest = max(deepest, nesting(child, inner))
    return deepest


def is_docstring(statement):
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def undocumented_fields(path):
    """Yield the fields of records and components that are not followed by a docstring."""
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.ClassDef):
            continue
        decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
        if not decorators & {"record", "component"}:
            continue
        for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
            is_field = isinstance(statement, ast.AnnAssign) and "ClassVar" not in ast.unparse(
                statement.annotation
            )
            if is_field and not is_docstring(following):
                yield f"{node.name}.{ast.unparse(statement.target)}"


def names(path):
    """Yield every name that is bound: variables, arguments, functions, classes, fields."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name


def docstrings(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_modules_and_functions_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_MODULE
    lengths = {f.name: f.end_lineno - f.lineno + 1 for f in functions(path)}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}
    depths = {f.name: nesting(f) for f in functions(path)}
    assert {name: depth for name, depth in depths.items() if depth > DEEPEST_NESTING} == {}


@pytest.mark.parametrize("path", [p for p in SHIPPED if "grpo_guard" in p.parts], ids=name_of)
def test_every_field_has_its_own_line(path):
    assert list(undocumented_fields(path)) == []


@pytest.mark.parametrize("path", [*SHIPPED, *TESTS], ids=name_of)
def test_names_are_plain(path):
    assert sorted(VAGUE & set(names(path))) == []


@pytest.mark.parametrize("path", [*SHIPPED, *TESTS], ids=name_of)
def test_docstrings_are_sentences(path):
    assert [text for text in docstrings(path) if text.startswith(HEADLESS)] == []
