"""What a new GPU should be tried on, in order of worth: `bench.py gpu`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from rich.table import Table

from grpo_guard.schema import record, require

STOPPED = 124
"""Exit code of a check whose time was over, as `timeout` gives it."""
KEPT_LINES = 40
"""Last lines of a check's output that its row keeps."""
NO_NETWORK = ("logger=none", "selftest=false")
SMALL = (
    *NO_NETWORK,
    "iterations=2",
    "data.prompts=4",
    "data.repeats=4",
    "microbatch=8",
    "eval.prompts=8",
    "eval.pictures=4",
)
"""Two iterations of an embedded model that take seconds."""
GUARD = ("clipping=guard", *NO_NETWORK)
FULL_SIZE = ("clipping=guard", "data.prompts=4", "data.repeats=8")


@record
class Check:
    """One command with what its outcome tells."""

    name: str
    """Short name; its output is kept in a file of this name."""
    question: str
    """What it answers."""
    words: tuple[str, ...]
    """The command and its arguments, such as ("train", "clipping=guard")."""
    minutes: float
    """When it is stopped."""


@record
class Outcome:
    """What a check showed."""

    name: str
    """Name of the check."""
    command: str
    """What was run."""
    code: int
    """Its exit code; `STOPPED` if its time was over."""
    seconds: float
    """How long it ran."""
    tail: tuple[str, ...]
    """The last lines of its output."""


Run = Callable[[Sequence[str], float, Path], int]
"""Runs a command with a limit in seconds and an output file, and returns its exit code."""


def plan(folder: Path) -> tuple[Check, ...]:
    """Return the checks, the most valuable ones first; their runs are written below `folder`."""
    return (
        *_small_loops(folder),
        *_full_size(),
        *_noise_floors(),
        *_scorers(),
        *_study(folder),
    )


def _small_loops(folder: Path) -> list[Check]:
    """Train every backbone in half precision, go on from a state, and use every strategy."""
    checks = []
    for backbone in ("sd3_tiny_lora", "flux_tiny"):
        for dtype in ("bfloat16", "float16"):
            output = f"output={folder / f'{backbone}_{dtype}'}"
            half = (f"backbone={backbone}", f"backbone.dtype={dtype}", *SMALL, output)
            checks.append(
                Check(
                    name=f"loop_{backbone}_{dtype}",
                    question="Does the loop run in half precision?",
                    words=("train", *half),
                    minutes=3,
                )
            )
    checks.append(
        Check(
            name="resume",
            question="Does a run go on from its state?",
            words=("train", *checks[0].words[1:], "iterations=3"),
            minutes=3,
        )
    )
    checks += [
        Check(
            name=f"strategy_{strategy}",
            question="Does the strategy run with one process?",
            words=(
                "train", *SMALL, f"strategy={strategy}", "strategy.processes=1",
                f"output={folder / strategy}",
            ),
            minutes=3,
        )
        for strategy in ("ddp", "fsdp", "zero2")
    ]  # fmt: skip
    return checks


def _full_size() -> list[Check]:
    """Time and weigh SD3.5-M and FLUX.1-dev with random weights."""
    sd35 = ("experiment=sd35_pickscore", *FULL_SIZE)
    flux = ("experiment=flux_pickscore_flow", *FULL_SIZE)
    recomputed, kept = "preset=gpu_80gb", "preset=gpu_80gb_sd35"
    speed = "Images per second, MFU and peak memory?"
    weight = "Is the predicted peak of memory right?"
    kernel = "Which kernel of attention is the fastest?"
    return [
        _bench("throughput", "sd35_recomputed", speed, 6, *sd35, recomputed),
        _bench("throughput", "sd35_kept", speed, 6, *sd35, kept),
        _bench("throughput", "sd35_compiled", speed, 8, *sd35, kept, "backbone.compile=true"),
        _bench("memory", "sd35", weight, 8, "--measure", *sd35, kept, "iterations=1"),
        _bench("attention", "sd35", kernel, 2, *sd35, kept),
        _bench("throughput", "flux", speed, 10, *flux, recomputed),
        _bench("memory", "flux", weight, 10, "--measure", *flux, recomputed, "iterations=1"),
        _bench("attention", "flux", kernel, 2, *flux, recomputed),
    ]


def _bench(benchmark: str, name: str, question: str, minutes: float, *words: str) -> Check:
    """Return a check that runs a benchmark, with few rounds."""
    return Check(
        name=f"{benchmark}_{name}",
        question=question,
        words=("bench", benchmark, "--rounds", "2", *words),
        minutes=minutes,
    )


def _noise_floors() -> list[Check]:
    """Compare the clip range with rounding, for latents of 1024 and of 65536 numbers."""
    recipes = {
        "tiny": ("backbone=sd3_tiny_lora",),
        "sd35": ("experiment=sd35_pickscore", "preset=gpu_80gb_sd35"),
    }
    question = "How much of the log-ratio is rounding?"
    return [
        _bench(
            "floor",
            f"{name}_{dtype}_{old_policy}",
            question,
            4,
            *recipe,
            f"backbone.dtype={dtype}",
            f"old_policy={old_policy}",
            *GUARD,
        )
        for name, recipe in recipes.items()
        for dtype in ("bfloat16", "float16")
        for old_policy in ("replay", "tangent")
    ]


def _scorers() -> list[Check]:
    """Time the rewards on the device."""
    return [
        Check(
            name="rewards",
            question="Images per second of every reward?",
            words=(
                "bench",
                "rewards",
                "--rewards",
                "pickscore",
                "pickscore_v1",
                "geneval_coco",
                "ocr",
            ),
            minutes=5,
        )
    ]


def _study(folder: Path) -> list[Check]:
    """Train the pairs of the study of over-optimization."""
    return [
        Check(
            name="study",
            question="Seeds of the study of over-optimization?",
            words=(
                "train", "+sweeps=over_optimization", "logger=none",
                "hydra/launcher=basic", f"output={folder}/study/${{job_name:}}",
            ),
            minutes=60,
        )
    ]  # fmt: skip


def run_plan(checks: Sequence[Check], folder: Path, minutes: float, run: Run) -> list[Outcome]:
    """Run the checks that are not done yet, as long as there is time; write each as it ends.

    `folder` gets figures.jsonl with one outcome per line, and NAME.log with the whole output of
    each check. A check that was stopped or failed is run again when the plan is started anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record_file = folder / "figures.jsonl"
    done = {o.name: o for o in read_outcomes(record_file) if o.code == 0}
    deadline = time.monotonic() + 60 * minutes
    for check in checks:
        left = deadline - time.monotonic()
        if check.name in done or left <= 0:
            continue
        outcome = _run_check(check, folder, min(left, 60 * check.minutes), run)
        with record_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(vars(outcome)) + "\n")
        done[check.name] = outcome
        print(f"{check.name}: {_describe(outcome)}", flush=True)
    return [done[check.name] for check in checks if check.name in done]


def _run_check(check: Check, folder: Path, seconds: float, run: Run) -> Outcome:
    log = folder / f"{check.name}.log"
    start = time.monotonic()
    code = run(check.words, seconds, log)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return Outcome(
        name=check.name,
        command=" ".join(check.words),
        code=code,
        seconds=round(time.monotonic() - start, 1),
        tail=tuple(lines[-KEPT_LINES:]),
    )


def read_outcomes(path: Path) -> list[Outcome]:
    """Return the outcomes that a plan has written; none if it was not started."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [json.loads(line) for line in lines]
    return [Outcome(**(row | {"tail": tuple(row["tail"])})) for row in rows]


def run_command(words: Sequence[str], seconds: float, log: Path) -> int:
    """Run a command of grpo-guard, and kill it and its processes when its time is over.

    Returns its exit code, or `STOPPED`.
    """
    command = [sys.executable, "-m", "grpo_guard.command", *words]
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return STOPPED
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def make_table(checks: Sequence[Check], outcomes: Sequence[Outcome]) -> Table:
    """Show every check with its outcome."""
    by_name = {outcome.name: outcome for outcome in outcomes}
    table = Table("check", "question", "outcome")
    for check in checks:
        table.add_row(check.name, check.question, _describe(by_name.get(check.name)))
    return table


def _describe(outcome: Outcome | None) -> str:
    if outcome is None:
        return "no time left"
    ends = {0: "done", STOPPED: "stopped"}
    return f"{ends.get(outcome.code, f'failed, code {outcome.code}')}, {outcome.seconds:.0f} s"


def require_gpu() -> str:
    """Return the name of the GPU; raises ConfigError where there is none."""
    import torch

    require(torch.cuda.is_available(), "no GPU is here; run bench.py gpu on a machine with one")
    return torch.cuda.get_device_name()
