"""Small mistakes that could be made in a module, one at a time."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SWAPS: dict[type, list[type]] = {
    ast.Add: [ast.Sub],
    ast.Sub: [ast.Add],
    ast.Mult: [ast.Div],
    ast.Div: [ast.Mult],
    ast.FloorDiv: [ast.Mult],
    ast.Mod: [ast.FloorDiv],
    ast.Pow: [ast.Mult],
    ast.BitAnd: [ast.BitOr],
    ast.BitOr: [ast.BitAnd],
    ast.And: [ast.Or],
    ast.Or: [ast.And],
    ast.Lt: [ast.LtE, ast.Gt],
    ast.LtE: [ast.Lt, ast.GtE],
    ast.Gt: [ast.GtE, ast.Lt],
    ast.GtE: [ast.Gt, ast.LtE],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
}
"""Operators, and what each of them is mistaken for."""
NAMES = {
    "mean": "sum", "sum": "mean", "min": "max", "max": "min", "minimum": "maximum",
    "maximum": "minimum", "sqrt": "square", "square": "sqrt", "abs": "neg", "log1p": "log",
    "expm1": "exp", "any": "all", "all": "any", "sin": "cos", "zeros": "ones", "ones": "zeros",
    "zeros_like": "ones_like", "ones_like": "zeros_like", "double": "float", "float": "double",
    "isfinite": "isnan", "isnan": "isfinite", "argmax": "argmin", "argsort": "argmin",
}  # fmt: skip
"""Methods and functions, and what each of them is mistaken for."""
MESSAGES = {"require", "ConfigError", "RunError", "Advice", "Rule", "warning", "info", "TypeVar"}
"""Calls whose texts are for people."""


@dataclass(frozen=True)
class Mutant:
    """One mistake in a module."""

    line: int
    """Line of the mistake."""
    function: str
    """Function or method around it, such as "Std.__add__"; empty at the level of the module."""
    change: str
    """What it is: the code before and after."""
    tree: ast.Module
    """The module with the mistake."""


def list_mutants(source: str) -> list[Mutant]:
    """Return every mistake that is tried in a module."""
    tree = ast.parse(source)
    mutants = []
    for path, node, function in _walk(tree, (), ""):
        for replacement in _replace(node):
            mutated = copy.deepcopy(tree)
            _put(mutated, path, replacement)
            change = f"{ast.unparse(node)} -> {ast.unparse(replacement)}".replace("\n", " ")
            mutants.append(Mutant(node.lineno, function, change[:160], mutated))
    return mutants


Path = tuple[tuple[str, int | None], ...]
"""Fields from the module to a node, each with the place in its list."""


def _walk(node: ast.AST, path: Path, function: str) -> Iterator[tuple[Path, ast.AST, str]]:
    """Yield the nodes that may be mistaken: no annotations, docstrings or messages."""
    if isinstance(node, ast.expr | ast.stmt):
        yield path, node, function
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "bases", "decorator_list", "type_params"):
            continue
        places = enumerate(value) if isinstance(value, list) else [(None, value)]
        for place, child in places:
            if isinstance(child, ast.AST) and not _is_for_people(node, name, child):
                inner = _name_function(node, name, function)
                yield from _walk(child, (*path, (name, place)), inner)


def _name_function(node: ast.AST, field: str, function: str) -> str:
    """Return the function around the children of a node; nested ones count as the outer one."""
    if isinstance(node, ast.ClassDef) and not function:
        return f"{node.name}."
    is_new = isinstance(node, ast.FunctionDef) and (not function or function.endswith("."))
    return f"{function}{node.name}" if is_new and field == "body" else function


def _is_for_people(parent: ast.AST, field: str, child: ast.AST) -> bool:
    text = isinstance(child, ast.Constant | ast.JoinedStr) and not isinstance(
        getattr(child, "value", ""), int | float
    )
    if isinstance(parent, ast.Expr) and text:
        return True
    if isinstance(parent, ast.Call) and field in ("args", "keywords"):
        name = getattr(parent.func, "attr", getattr(parent.func, "id", ""))
        return name in MESSAGES and (text or name in ("TypeVar", "Advice"))
    is_type = isinstance(parent, ast.Assign | ast.AnnAssign) and isinstance(child, ast.Subscript)
    return isinstance(parent, ast.JoinedStr) or (is_type and field == "value" and _is_alias(child))


def _is_alias(node: ast.AST) -> bool:
    """Return whether an assigned value is a type, such as tuple[float, ...]."""
    name = ast.unparse(node).partition("[")[0]
    return name in ("tuple", "Callable", "Mapping", "Float", "dict", "list", "Annotated")


def _replace(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what a node may be mistaken for."""
    for kind, change in CHANGES.items():
        if isinstance(node, kind):
            yield from change(node)


def _swap_operator(node: ast.BinOp | ast.BoolOp) -> Iterator[ast.AST]:
    for other in SWAPS.get(type(node.op), ()):
        yield _with(node, op=other())


def _swap_comparison(node: ast.Compare) -> Iterator[ast.AST]:
    for place, operator in enumerate(node.ops):
        for other in SWAPS.get(type(operator), ()):
            yield _with(node, ops=[*node.ops[:place], other(), *node.ops[place + 1 :]])


def _drop_sign(node: ast.UnaryOp) -> Iterator[ast.AST]:
    yield node.operand


def _change_constant(node: ast.Constant) -> Iterator[ast.AST]:
    value = node.value
    if isinstance(value, bool):
        yield _with(node, value=not value)
    elif isinstance(value, int):
        yield _with(node, value=value + 1)
    elif isinstance(value, float):
        yield _with(node, value=value * 2 + 0.25)
    elif isinstance(value, str) and value:
        yield _with(node, value=f"XX{value}")


def _choose_branch(node: ast.If | ast.IfExp) -> Iterator[ast.AST]:
    for value in (True, False):
        yield _with(node, test=ast.copy_location(ast.Constant(value), node.test))


def _drop_statement(node: ast.Expr | ast.AugAssign | ast.Raise | ast.Continue) -> Iterator[ast.AST]:
    if not isinstance(getattr(node, "value", None), ast.Constant | ast.Yield | ast.YieldFrom):
        yield ast.copy_location(ast.Pass(), node)


def _swap_name(node: ast.Call) -> Iterator[ast.AST]:
    function = node.func
    if isinstance(function, ast.Attribute) and function.attr in NAMES:
        yield _with(node, func=_with(function, attr=NAMES[function.attr]))
    elif isinstance(function, ast.Name) and function.id in ("min", "max", "any", "all"):
        yield _with(node, func=_with(function, id=NAMES[function.id]))


def _drop_call(node: ast.Call) -> Iterator[ast.AST]:
    """Leave out a method that returns its own kind, such as x.clamp(...) or x.abs()."""
    kept = ("clamp", "abs", "detach", "clone", "sqrt", "square", "flatten", "double", "argsort")
    if isinstance(node.func, ast.Attribute) and node.func.attr in kept:
        yield node.func.value


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _put(tree: ast.AST, path: Path, replacement: ast.AST) -> None:
    """Replace the node at a path."""
    *parents, (name, place) = path
    for field, index in parents:
        child = getattr(tree, field)
        tree = child if index is None else child[index]
    new = ast.fix_missing_locations(copy.deepcopy(replacement))
    if place is None:
        setattr(tree, name, new)
    else:
        getattr(tree, name)[place] = new


CHANGES: dict[type | tuple[type, ...], Callable[..., Iterator[ast.AST]]] = {
    (ast.BinOp, ast.BoolOp): _swap_operator,
    ast.Compare: _swap_comparison,
    ast.UnaryOp: _drop_sign,
    ast.Constant: _change_constant,
    (ast.If, ast.IfExp): _choose_branch,
    (ast.Expr, ast.AugAssign, ast.Raise, ast.Continue): _drop_statement,
    ast.Call: _swap_name,
}
"""What each kind of node is mistaken for."""
