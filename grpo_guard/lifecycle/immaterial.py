"""The settings that leave the numbers of a run as they are."""

IMMATERIAL = (
    "output", "resume", "strategy", "logger", "checkpoint", "keep_trajectory", "backbone.compile",
    "eval.alarm", "eval.stop_on_over_optimisation",
)  # fmt: skip
"""Settings that change where and how a run is computed, kept and ended, but not its numbers."""
