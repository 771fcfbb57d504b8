"""Annotations of the package's classes and functions, read from its source without an import.

Importing a component imports torch, which takes seconds. Names that the package does not define are
taken from the standard library and from schema.py, and stand for anything otherwise.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grpo_guard import schema

_PACKAGE = Path(schema.__file__).parent
_LIGHT = {*sys.stdlib_module_names, schema.__name__}
"""Modules that are imported to resolve a name, by the first part of their names."""

Definition = ast.ClassDef | ast.FunctionDef


class Part(functools.partial[Any]):
    """Stands for a component or a function that settings describe."""


def stand_in(target: str, settings: Mapping[str, Any], is_partial: bool) -> Part:
    """Return what stands for a component, or for a function that has some of its arguments."""
    module, _, name = target.rpartition(".")

    def nobody_calls_it(*_: Any, **__: Any) -> None: ...

    definition = find_definition(target)
    makes_component = is_partial and isinstance(definition, tuple) and is_component(definition[1])
    function = type("Made", (), {"is_component": True}) if makes_component else nobody_calls_it
    function.__qualname__ = name  # messages show it
    function.__module__ = ""  # its arguments have been checked
    cls: type[Part] = type("Part", (Part,), {"__module__": module})
    return cls(function, **(settings if is_partial else {}))


class _Described(type):
    """Makes a stand-in for a class of the package: every described part is an instance."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, Part)


class _Unknown(type):
    """Makes a stand-in for a class of a library: every value is an instance."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return True

    def __getitem__(cls, parameters: Any) -> _Unknown:
        return cls

    def __getattr__(cls, name: str) -> _Unknown:
        if name.startswith("_"):
            raise AttributeError(name)
        return cls


_ANYTHING = _Unknown("Anything", (), {})


def find_definition(target: str) -> tuple[str, Definition] | None:
    """Return the module and the definition of a class or function of the package, or None."""
    module, _, name = target.rpartition(".")
    statement = _names(module).get(name)
    if isinstance(statement, Definition):
        return module, statement
    if isinstance(statement, ast.ImportFrom):
        return find_definition(f"{statement.module}.{_original(statement, name)}")
    return None


@functools.cache
def read_annotations(module: str, definition: Definition) -> Mapping[str, Any] | None:
    """Return the types of the settings of a component or function, by name.

    Those of a component include its bases' settings. None for a class that is no component.
    """
    if isinstance(definition, ast.FunctionDef):
        arguments = [*definition.args.args, *definition.args.kwonlyargs]
        return {argument.arg: _evaluate(module, argument.annotation) for argument in arguments}
    if not is_component(definition):
        return None
    hints: dict[str, Any] = {}
    for base in definition.bases:
        parent = find_definition(f"{module}.{ast.unparse(base)}")
        hints |= (read_annotations(*parent) or {}) if parent else {}
    return hints | {name: _evaluate(module, node) for name, node in _fields(definition)}


def is_component(definition: Definition) -> bool:
    """Return whether a definition is decorated as a component."""
    return any(getattr(name, "id", "") == "component" for name in definition.decorator_list)


def _fields(definition: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and not ast.unparse(node.annotation).startswith("Class"):
            yield ast.unparse(node.target), node.annotation


@functools.cache
def _names(module: str) -> Mapping[str, ast.stmt]:
    """Return the statement that binds each global name of a module of the package."""
    file = _PACKAGE.parent.joinpath(*module.split("."))
    file = next((f for f in (file.with_suffix(".py"), file / "__init__.py") if f.is_file()), file)
    if not file.is_file() or not file.is_relative_to(_PACKAGE):
        return {}
    names: dict[str, ast.stmt] = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, Definition):
            names[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {ast.unparse(target): node for target in targets}
    return names


def _original(statement: ast.Import | ast.ImportFrom, name: str) -> str:
    """Return the name in the imported module of a name that an import binds."""
    return next(alias.name for alias in statement.names if (alias.asname or alias.name) == name)


@functools.cache
def _resolve(module: str, name: str) -> Any:
    """Return what a name in an annotation stands for."""
    node = _names(module).get(name)
    if node is None:
        return getattr(builtins, name, _ANYTHING)
    if isinstance(node, ast.ClassDef):
        is_protocol = any(ast.unparse(base) == "Protocol" for base in node.bases)
        return _Described(name, (), {"__module__": module, "_is_protocol": is_protocol})
    if isinstance(node, ast.Import | ast.ImportFrom):
        return _import(node, _original(node, name))
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return _evaluate(module, node.value)
    return lambda *_: True  # a rule that only the package's import can judge


def _import(statement: ast.Import | ast.ImportFrom, name: str) -> Any:
    source = name if isinstance(statement, ast.Import) else statement.module or ""
    if source == schema.__name__ or source.partition(".")[0] in _LIGHT:
        module = importlib.import_module(source)
        return module if isinstance(statement, ast.Import) else getattr(module, name)
    return _resolve(source, name) if source.partition(".")[0] == _PACKAGE.name else _ANYTHING


def _evaluate(module: str, expression: ast.expr | None) -> Any:
    """Return the value of an annotation, or of what it refers to, in a module of the package."""
    if expression is None:
        return _ANYTHING
    names = {node.id for node in ast.walk(expression) if isinstance(node, ast.Name)}
    values = {name: _resolve(module, name) for name in names}
    code = compile(ast.Expression(expression), module, "eval")
    try:
        return eval(code, values)
    except (TypeError, AttributeError):
        return _ANYTHING  # it computes with something that only the package's import gives
