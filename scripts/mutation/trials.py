"""Runs tests against mutants: each in a fork of one process that has collected all tests."""

from __future__ import annotations

import ast
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

from mutation.operators import Mutant

SECONDS = 60
"""Least time after which the tests of a mutant count as hanging, which kills it."""
FEW = 1
"""Tests of a function that is tried without a mistake."""
NOT_PUT = 77
"""Exit code of a fork that could not put in the code of a mutant."""
ADDRESS = tuple[str, str]
"""A module's path and a function in it."""


class Trials:
    """A plugin of pytest that tries mutants instead of running the tests once.

    `mutants` are (path of the module, mutant). `outcomes` gets a line of each: "killed",
    "survived", "untested" or "hangs".
    """

    def __init__(self, mutants: list[tuple[str, Mutant]]) -> None:
        self.mutants = mutants
        self.outcomes: list[str] = []
        self.seconds: dict[str, float] = {}
        self.callers: dict[ADDRESS, set[str]] = defaultdict(set)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: Any) -> bool:
        """Find out which test calls which function, then try each mutant with its tests."""
        paths = {path for path, _ in self.mutants}
        self._profile(session, paths)
        for path in sorted(paths):
            self._check_control(session, path)
        for number, (path, mutant) in enumerate(self.mutants, start=1):
            outcome = self._try(session, path, mutant)
            self.outcomes.append(outcome)
            if outcome != "killed" or number % 20 == 0:
                words = f"{outcome:9} {path}:{mutant.line} {mutant.function} {mutant.change}"
                print(f"{number}/{len(self.mutants)} {words}", file=sys.__stderr__, flush=True)
        return True

    def _profile(self, session: Any, paths: set[str]) -> None:
        """Run all tests once in a fork that reports the functions which each of them calls."""
        read, write = os.pipe()
        if not os.fork():
            os.close(read)
            silence(session)
            with os.fdopen(write, "w") as pipe:
                for item in session.items:
                    seconds, called = run_profiled(session, item, paths)
                    pipe.write(f"{item.nodeid}\t{seconds}\t{';'.join(called)}\n")
            os._exit(bool(session.testsfailed))
        os.close(write)
        with os.fdopen(read) as pipe:
            for line in pipe:
                test, seconds, called = line.rstrip("\n").split("\t")
                self.seconds[test] = float(seconds)
                for address in filter(None, called.split(";")):
                    path, _, function = address.partition(":")
                    self.callers[path, function].add(test)
        _, status = os.wait()
        if status:
            raise pytest.UsageError("the tests must pass before mutants are tried")

    def _check_control(self, session: Any, path: str) -> None:
        """Try functions without a mistake, with a few tests each; no test may see that."""
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
        for place, function in [*self.callers]:
            if place == path and function:
                unchanged = Mutant(line=0, function=function, change="", tree=tree)
                if self._try(session, path, unchanged, FEW) != "survived":
                    raise pytest.UsageError(f"{path} {function}: unchanged, it is killed")

    def _try(self, session: Any, path: str, mutant: Mutant, most: int | None = None) -> str:
        """Return what becomes of a mutant; quick tests come first, and at most `most` are run."""
        at_import = not mutant.function or mutant.function.endswith(".")
        if at_import:
            tests = {
                t for (place, _), names in self.callers.items() if place == path for t in names
            }
            # A test of a constant calls no function of its module.
            tests |= {t for t in self.seconds if t.startswith(mirror_of(path))}
        else:
            tests = self.callers[path, mutant.function]
        if not tests:
            return "untested"
        items = [item for item in session.items if item.nodeid in tests]
        items.sort(key=lambda item: self.seconds[item.nodeid])
        items = items[:most]
        limit = SECONDS + 5 * sum(self.seconds[item.nodeid] for item in items)
        child = os.fork()
        if not child:
            silence(session)
            if at_import:
                os._exit(run_anew(path, mutant, items))
            os._exit(run_until_failure(session, items) if put_code(path, mutant) else NOT_PUT)
        outcome = wait(child, limit)
        if outcome == "not put":
            raise pytest.UsageError(f"{path}: the code of {mutant.function} is not there")
        return outcome


def mirror_of(path: str) -> str:
    """Return the folder or the file of the tests of a module, as the ids of its tests begin."""
    module = Path(path.rpartition("/grpo_guard/")[2])
    if module.parent == Path():
        return f"tests/test_{module.stem}.py::"
    return f"tests/{module.parent}/"


def silence(session: Any) -> None:
    """Print nothing in a fork."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    reporter._tw._file = os.fdopen(nothing, "w")


def wait(child: int, limit: float) -> str:
    """Return the outcome of a fork, which is killed after `limit` seconds."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return {0: "survived", NOT_PUT: "not put"}.get(code, "killed")
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"


def run_profiled(session: Any, item: Any, paths: set[str]) -> tuple[float, list[str]]:
    """Run a test; return its seconds and the functions of the modules that it called."""
    called: set[str] = set()

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename in paths:
            function = frame.f_code.co_qualname.partition(".<locals>")[0]
            called.add(f"{frame.f_code.co_filename}:{function}")

    start = time.perf_counter()
    threading.setprofile(note)
    sys.setprofile(note)
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
    sys.setprofile(None)
    return time.perf_counter() - start, sorted(called)


def run_until_failure(session: Any, items: list[Any]) -> int:
    """Run tests; return 1 at the first that fails, else 0."""
    for place, item in enumerate(items):
        following = items[place + 1] if place + 1 < len(items) else None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return 1
    return 0


def run_anew(path: str, mutant: Mutant, items: list[Any]) -> int:
    """Run tests in a new process, for a mistake that acts while a module is imported."""
    file = Path(path)
    before = file.read_text(encoding="utf-8")
    file.write_text(ast.unparse(mutant.tree), encoding="utf-8")
    command = [sys.executable, "-B", "-m", "pytest", "-x", *(item.nodeid for item in items)]
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        file.write_text(before, encoding="utf-8")


def put_code(path: str, mutant: Mutant) -> bool:
    """Give the functions of an imported module a mutant's code; return whether it was found."""
    new: dict[str, list[CodeType]] = defaultdict(list)
    for code in list_codes(compile(mutant.tree, path, "exec")):
        new[code.co_qualname].append(code)
    changed = set()
    gc.unfreeze()  # frozen objects are not listed
    for value in gc.get_objects():
        if not isinstance(value, FunctionType) or value.__code__.co_filename != path:
            continue
        same = [
            code
            for code in new[value.__code__.co_qualname]
            if code.co_freevars == value.__code__.co_freevars
        ]
        if len(same) == 1:
            value.__code__ = same[0]
            changed.add(same[0].co_qualname)
    return mutant.function in changed


def list_codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object and those within it."""
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from list_codes(value)
