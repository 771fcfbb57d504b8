"""Reports on run folders, finished or still running: numbers, figures and a page."""

from grpo_guard.report.page import write_page
from grpo_guard.report.reading import read_readable_runs, read_run, read_runs
from grpo_guard.report.results import analyse_runs
from grpo_guard.report.runs import Run

__all__ = ["Run", "analyse_runs", "read_readable_runs", "read_run", "read_runs", "write_page"]
