"""Tries small mistakes in the core, one at a time: python scripts/mutate.py [MODULE ...] [--help]

Every mistake that a test sees is killed. Those that no test sees are printed at the end. A mistake
that changes nothing is listed with the reason in scripts/mutation/equivalent.yaml, and counts as
judged. All work is done in a copy of the repository. CI does not run this: it takes an hour or so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

Result = dict[str, Any]
"""A mutant and its outcome."""
ROOT = Path(__file__).resolve().parents[1]
CORE = (
    "ratio.py", "gaussian.py", "rng.py", "metrics.py", "rollout.py", "clipping/*.py", "sde/*.py",
    "advantage/*.py", "old_policy/*.py", "kl/*.py", "ema/*.py", "diagnostics/ratios.py",
    "diagnostics/not_finite.py",
)  # fmt: skip
"""Modules below grpo_guard/ that hold the maths."""
QUICK = (
    "test_ratio.py", "test_gaussian.py", "test_rng.py", "test_metrics.py", "test_rollout.py",
    "test_types.py", "clipping", "sde", "advantage", "old_policy", "kl", "ema",
    "diagnostics/test_ratios.py", "diagnostics/test_not_finite.py", "data/test_plan.py",
)  # fmt: skip
"""Tests of single parts."""
THOROUGH = (
    *QUICK, "test_properties.py", "test_session.py", "test_train.py", "test_golden.py",
    "data/test_deal.py", "command/test_verify.py", "lifecycle/test_session_state.py", "final_steps",
)  # fmt: skip
"""Tests of whole iterations too, for mistakes that the quick ones do not see."""
COPIED = ("grpo_guard", "tests", "scripts", "conf", "sweeps", "docs", "pyproject.toml")


def main() -> None:
    """Try the mutants; exit with 1 if one survives that nobody judged."""
    line = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    line.add_argument("modules", nargs="*", default=CORE, help="patterns below grpo_guard/")
    line.add_argument("--report", type=Path, required=True, help="a JSON file for all outcomes")
    line.add_argument(
        "--again", action="store_true", help="try only what survived in the report, with more tests"
    )
    args = line.parse_args()
    report = args.report.absolute()
    before = json.loads(report.read_text(encoding="utf-8")) if args.again else []
    # What was judged to change nothing would pass all tests again, which takes the longest.
    open_before = judge(before)
    with tempfile.TemporaryDirectory() as folder:
        results = try_all(Path(folder), args.modules, open_before)
    tried = {key_of(result) for result in results}
    results = [*(r for r in before if key_of(r) not in tried), *results]
    report.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    survivors = judge(results)
    print_summary(results, survivors)
    raise SystemExit(bool(survivors))


def key_of(result: Result) -> tuple[object, ...]:
    """Return what tells mutants apart, also after lines have moved."""
    return result["module"], result["function"], result["change"]


def is_open(result: Result) -> bool:
    """Whether no test has seen a mutant."""
    return result["outcome"] in ("survived", "untested")


def try_all(folder: Path, patterns: Sequence[str], open_before: list[Result]) -> list[Result]:
    """Copy the repository into a folder and try mutants there: all, or those still open."""
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    os.chdir(folder)
    sys.path[:0] = [str(folder), str(folder / "scripts")]
    sys.dont_write_bytecode = True

    import pytest
    import torch

    from mutation.operators import list_mutants
    from mutation.trials import Trials

    torch.set_num_threads(1)
    files = sorted({path for pattern in patterns for path in (folder / "grpo_guard").glob(pattern)})
    known = {key_of(result) for result in open_before}
    mutants = []
    for path in files:
        module = str(path.relative_to(folder))
        for mutant in list_mutants(path.read_text(encoding="utf-8")):
            if not known or (module, mutant.function, mutant.change) in known:
                mutants.append((str(path), mutant))
    tests = THOROUGH if known else QUICK
    trials = Trials(mutants)
    pytest.main(["-p", "no:cacheprovider", *(f"tests/{name}" for name in tests)], plugins=[trials])
    return [
        {
            "module": str(Path(path).relative_to(folder)),
            "line": mutant.line,
            "function": mutant.function,
            "change": mutant.change,
            "outcome": outcome,
        }
        for (path, mutant), outcome in zip(mutants, trials.outcomes, strict=False)
    ]


def judge(results: list[Result]) -> list[Result]:
    """Return the survivors that equivalent.yaml does not explain; mark those that it does."""
    text = (ROOT / "scripts/mutation/equivalent.yaml").read_text(encoding="utf-8")
    known = {key_of(entry) for entry in yaml.safe_load(text) or []}
    survivors = [result for result in results if is_open(result)]
    for result in survivors:
        if key_of(result) in known:
            result["outcome"] = "judged"
    return [result for result in survivors if result["outcome"] != "judged"]


def print_summary(results: list[Result], survivors: list[Result]) -> None:
    """Print the outcomes by module, and every survivor."""
    for module in sorted({result["module"] for result in results}):
        counts = Counter(r["outcome"] for r in results if r["module"] == module)
        print(f"{module:40} {', '.join(f'{n} {what}' for what, n in sorted(counts.items()))}")
    for result in survivors:
        print(f"{result['module']}:{result['line']} {result['function']}: {result['change']}")
    share = 1 - len(survivors) / max(1, len(results))
    print(f"{len(results)} mutants, {share:.1%} killed or judged")


if __name__ == "__main__":
    main()
