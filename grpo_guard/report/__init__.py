"""Reports on run folders, finished or still running: numbers, figures and a page."""

from grpo_guard.report.page import write_page
from grpo_guard.report.runs import Run, read_run, read_runs

__all__ = ["Run", "read_run", "read_runs", "write_page"]
