"""The checks that a new GPU should be tried with, the most useful first."""

from __future__ import annotations

from pathlib import Path

from grpo_guard.schema import record

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
    module: str = "grpo_guard.command"
    """Python's module that takes the words."""


def plan(folder: Path) -> tuple[Check, ...]:
    """Return the checks, the most valuable ones first; their runs are written below `folder`."""
    return (
        *_small_loops(folder),
        _tests(),
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


def _tests() -> Check:
    """Run the tests of the checkout, as `make test` does, with a worker for each core."""
    return Check(
        name="tests",
        question="Do all tests pass on a machine with a GPU?",
        words=("-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder", "-q", "tests"),
        minutes=8,
        module="pytest",
    )


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
        _kernels("sd35_kept", *sd35, kept),
        _kernels("sd35_compiled", *sd35, kept, "backbone.compile=true"),
        _bench("memory", "sd35", weight, 8, "--measure", *sd35, kept, "iterations=1"),
        _bench("attention", "sd35", kernel, 2, *sd35, kept),
        _bench("throughput", "flux", speed, 10, *flux, recomputed),
        _kernels("flux", *flux, recomputed),
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


def _kernels(name: str, *words: str) -> Check:
    """Return a check that profiles an iteration."""
    return Check(
        name=f"kernels_{name}",
        question="Which kernels take the time?",
        words=("bench", "kernels", *words),
        minutes=6,
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
    """Time the rewards on the device, one by one, so that each is known if another fails."""
    rewards = {
        "pickscore": "pickscore",
        "pickscore_v1": "pickscore_v1",
        "geneval_coco": "geneval_coco",
        "ocr": "ocr",
        "ocr_torch": "ocr engine=torch",
        "ocr_onnxruntime_gpu": "ocr engine=onnxruntime_gpu",
    }
    return [
        Check(
            name="detector",
            question="Does GenEval's detector see the same on the GPU as on the CPU?",
            words=("bench", "detector", "--images", "16"),
            minutes=3,
        ),
        *(
            Check(
                name=f"rewards_{name}",
                question="Images per second of the reward?",
                words=("bench", "rewards", "--rewards", reward),
                minutes=3,
            )
            for name, reward in rewards.items()
        ),
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
