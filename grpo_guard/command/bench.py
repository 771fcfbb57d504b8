"""Measure or predict what training costs: python scripts/bench.py BENCHMARK [options] [overrides]

objectives    time iterations of several objectives; overrides are those of train.py
diagnostics   time Guard with all diagnostics against vanilla without any; also prints the bytes of
              latents that each image keeps
idle          time Guard with and without the backward of rows that have no advantage; overrides
              choose the reward, such as reward=ocr
precision     error of RatioNorm in float32, in closed form and as a difference of log-probabilities
rewards       images per second of rewards; large published scorers get random weights
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
attention     milliseconds of torch's kernels of attention at the shapes of one microbatch, and over
              those of the kernel that torch chooses; overrides choose the backbone
compile       CPU seconds of an iteration with and without backbone.compile, and from how many
              iterations on it pays
soak          many small iterations: growth of memory, open files, threads and of the run folder
floor         the noise floor, as preflight measures it, with random weights; overrides choose the
              backbone, such as experiment=sd35_pickscore
rounding      what half precision adds to a log-ratio, where it comes from, and what helps;
              overrides choose the backbone and its dtype
gpu           on a machine with a GPU, everything that needs one, in order of worth: the loop in
              half precision, SD3.5-M and FLUX.1-dev at full size with random weights, noise floors,
              scorers, and seeds of the study. Started again, it goes on where it stopped
pages         seconds and size of the page of compare.py, for runs with made-up numbers
peers         CPU seconds of an iteration against the common loop of the field, written plainly here

Variants are timed in turn, so that their ratios are fair on a machine whose speed drifts. Tables
show medians; ratios are taken round by round.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from grpo_guard.console import cli
from grpo_guard.console.announcing import announce
from grpo_guard.console.overrides import quote_override

BENCHMARKS = (
    "objectives", "diagnostics", "idle", "precision", "rewards", "asynchronous", "spelling",
    "memory", "scaling", "throughput", "attention", "compile", "peers", "soak",
    "floor", "rounding", "gpu", "pages",
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
    parser = cli.make_parser(__doc__ or "", epilog="")
    parser.add_argument("benchmark", choices=BENCHMARKS, help="what to measure, as listed above")
    rounds = "timed iterations of each variant, after one to warm up"
    parser.add_argument("--rounds", type=int, default=5, help=rounds)
    parser.add_argument(
        "--objectives",
        nargs="+",
        default=["vanilla", "guard"],
        help="names under conf/clipping, for objectives",
    )
    parser.add_argument(
        "--rewards",
        nargs="+",
        default=list(EMBEDDED_REWARDS),
        help="names under conf/reward, for rewards",
    )
    parser.add_argument(
        "--strategies",
        nargs="+",
        choices=STRATEGIES,
        default=list(STRATEGIES),
        help="strategies, for scaling",
    )
    add_sizes(parser)
    return parser


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how much single benchmarks do."""
    parser.add_argument(
        "--images",
        type=int,
        default=64,
        help="images that each reward scores, or words of each font for spelling",
    )
    parser.add_argument(
        "--iterations", type=int, default=500, help="iterations of soak, and of a run of pages"
    )
    parser.add_argument("--minutes", type=float, default=30, help="time in all, for gpu")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/gpu"),
        metavar="DIR",
        help="where gpu writes figures.jsonl, the outputs and its runs",
    )
    parser.add_argument("--runs", type=int, default=20, help="runs on the page, for pages")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="also run what memory predicts, with random weights and without scorers",
    )


def main() -> None:
    """Run a benchmark; exit with one line if a setting cannot be used."""
    parser = make_parser()
    args, overrides = parser.parse_known_args()
    unknown = [word for word in overrides if word.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    with cli.exit_on_mistake():
        announce()
        from grpo_guard.command import benchmarks

        run = benchmarks.BENCHMARKS[args.benchmark]
        run(args, [quote_override(override) for override in overrides])


if __name__ == "__main__":
    main()
