"""Curves and pages made from run folders, finished or still running."""

from grpo_guard.report.page import write
from grpo_guard.report.runs import Run, gather, read

__all__ = ["Run", "gather", "read", "write"]
