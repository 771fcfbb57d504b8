"""Measure or predict what training costs: python scripts/bench.py BENCHMARK [options] [overrides]

objectives    seconds of an iteration for several objectives; overrides are those of train.py
diagnostics   seconds of Guard with all diagnostics against vanilla without any, and the bytes of
              latents that each image keeps
idle          seconds of Guard with and without the backward of rows that have no advantage;
              overrides choose the reward, such as reward=ocr
precision     error of RatioNorm in float32, in closed form and as a difference of log-probabilities
rewards       images that rewards score in a second; large published scorers get random weights
asynchronous  share of a reward's time that is hidden behind the rollout; overrides choose the
              reward, such as reward=ocr
spelling      share of words that OCR reads, by font and size
memory        peak bytes on a device: predicted and measured for small runs, predicted for the
              shipped presets. With overrides: predicted for that run, part by part; with --measure
              also measured here
scaling       for each strategy, what two processes exchange, predicted and counted, and their
              seconds against one process with half the images. Predicted: what SD3.5-M and
              FLUX.1-dev exchange on 8 and 64 GPUs, and the largest model that fits a card
throughput    images per second with random weights, operations per second and the share of the
              GPU's peak (MFU). Without overrides: of a small run, with the recipes' cost calculated
attention     milliseconds of torch's kernels of attention at the shapes of one microbatch, and
              relative to the kernel that torch chooses; overrides choose the backbone
kernels       seconds of an iteration by kernel and by kind of kernel, under torch's profiler, with
              random weights; overrides choose the backbone
detector      whether GenEval's detector sees the same on the GPU as on the CPU, with random weights
compile       CPU seconds of an iteration with and without backbone.compile, and after how many
              iterations compiling has paid for itself
soak          growth of memory, open files, threads and the run folder in many small iterations
floor         the noise floor, as preflight measures it, with random weights; overrides choose the
              backbone, such as experiment=sd35_pickscore
rounding      what half precision adds to a log-ratio, where it comes from, and what helps;
              overrides choose the backbone and its dtype
gpu           everything that needs a GPU, the most useful first: the loop in half precision, the
              tests, SD3.5-M and FLUX.1-dev at full size with random weights, noise floors,
              scorers, and seeds of the study. The same command continues where it stopped
pages         seconds and size of the page of compare.py, for runs with made-up numbers
peers         CPU seconds of an iteration against a plain copy of the loop that the field uses

Variants take turns, so that their ratios are fair on a machine whose speed drifts. Tables show
medians; each round gives a ratio.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from grpo_guard.console import cli
from grpo_guard.console.announcing import announce
from grpo_guard.console.overrides import quote_override

EXAMPLES = """examples:
  python scripts/bench.py memory experiment=sd35_ocr preset=gpu_24gb
  python scripts/bench.py throughput experiment=sd35_pickscore preset=gpu_80gb
  python scripts/bench.py rewards --rewards pickscore ocr --images 16
  python scripts/bench.py kernels data.prompts=4 data.repeats=8 microbatch=16
  python scripts/bench.py gpu --minutes 60"""
"""Commands worth trying."""
BENCHMARKS = (
    "objectives", "diagnostics", "idle", "precision", "rewards", "asynchronous", "spelling",
    "memory", "scaling", "throughput", "attention", "kernels", "detector", "compile", "peers",
    "soak", "floor", "rounding", "gpu", "pages",
)  # fmt: skip
"""The functions of command/benchmarks.py, by name."""
EMBEDDED_REWARDS = (
    "pickscore", "pickscore_gold", "ocr", "ocr_exact", "geneval", "diversity", "statistics",
    "world", "mixture",
)  # fmt: skip
"""Rewards whose weights ship with the package."""
STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp", "fsdp-microbatch", "hsdp")
"""Choices of conf/strategy; "fsdp-microbatch" is fsdp with reduce=microbatch."""


def make_parser() -> argparse.ArgumentParser:
    """Make the command line; what it does not know are overrides of train.py."""
    parser = cli.make_parser(__doc__ or "", epilog=EXAMPLES)
    parser.add_argument(
        "benchmark",
        choices=BENCHMARKS,
        metavar="BENCHMARK",
        help="what to measure, as listed above",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        metavar="N",
        help="timed iterations of each variant, after one that warms up (default: 5)",
    )
    parser.add_argument(
        "--objectives",
        nargs="+",
        default=["vanilla", "guard"],
        metavar="NAME",
        help="for objectives: choices of conf/clipping (default: vanilla guard)",
    )
    parser.add_argument(
        "--rewards",
        nargs="+",
        default=list(EMBEDDED_REWARDS),
        metavar="NAME",
        help="for rewards: choices of conf/reward (default: those that ship with the package)",
    )
    parser.add_argument(
        "--strategies",
        nargs="+",
        choices=STRATEGIES,
        default=list(STRATEGIES),
        metavar="NAME",
        help=f"for scaling: which of {', '.join(STRATEGIES)} (default: all)",
    )
    add_sizes(parser)
    return parser


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how much single benchmarks do."""
    parser.add_argument(
        "--images",
        type=int,
        default=64,
        metavar="N",
        help="for rewards and detector: pictures; for spelling: words of each font (default: 64)",
    )
    parser.add_argument(
        "--iterations",
        type=int,
        default=500,
        metavar="N",
        help="for soak and pages: iterations of a run (default: 500)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=30,
        metavar="N",
        help="for gpu: minutes in all (default: 30)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/gpu"),
        metavar="DIR",
        help="for gpu: where it writes figures.jsonl, the outputs and its runs (default: runs/gpu)",
    )
    parser.add_argument(
        "--runs", type=int, default=20, metavar="N", help="for pages: number of runs (default: 20)"
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="for memory: also run what is predicted, with random weights and without scorers",
    )


def main() -> None:
    """Run a benchmark; exit with one line if a setting cannot be used."""
    parser = make_parser()
    args, overrides = parser.parse_known_args()
    unknown = [word for word in overrides if word.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    # torch's profiler would write lines of its own; it reads this when torch is imported.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with cli.exit_on_mistake():
        announce()
        from grpo_guard.command import benchmarks

        run = benchmarks.BENCHMARKS[args.benchmark]
        run(args, [quote_override(override) for override in overrides])


if __name__ == "__main__":
    main()
