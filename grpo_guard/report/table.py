"""The summary table as text for a terminal, and as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence

from grpo_guard.report.results import SetResult
from grpo_guard.report.statistics import Interval
from grpo_guard.report.summary import TableSection, summarise

LEAST_WIDTH, MOST_WIDTH = 80, 100
"""Columns that text has at least and at most, however wide the terminal is."""
LEAST_NAME = 34
"""Columns that names have at least; longer ones go on in the next line if there is no room."""
MOST_HEAD = 24
LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def format_terminal(results: Sequence[SetResult], columns: int = MOST_WIDTH) -> str:
    """Return answers, notes, table and verdicts of every set for a terminal of some columns."""
    width = min(max(columns, LEAST_WIDTH), MOST_WIDTH)
    return "\n".join(line for result in results for line in _terminal_lines(result, width))


def _terminal_lines(result: SetResult, width: int) -> list[str]:
    lines = [f"== {result.arm_set.title}"[:width]] if result.arm_set.title else []
    for answer in result.answers + result.answers_behind:
        text = f"{answer.question} {answer.verdict}. {answer.sentence}"
        lines += textwrap.wrap(text, width, subsequent_indent="  ")
    for note in result.notes:
        lines += textwrap.wrap(f"Note: {note}", width, subsequent_indent="  ")
    lines += ["", *_wrap_columns(_heads(result), summarise(result), width), ""]
    for claim in result.claims:
        text = f"{claim.verdict:<14}{claim.rule.title}"
        lines += textwrap.wrap(text, width, subsequent_indent=" " * 14)
    return [*lines, ""]


def _heads(result: SetResult) -> list[str]:
    return [arm.label for arm in result.arm_set.arms]


def _wrap_columns(heads: Sequence[str], sections: Sequence[TableSection], width: int) -> list[str]:
    """Return a table in as many blocks of columns as its width demands."""
    rows = [row for section in sections for row in section.texts]
    room = width - LEAST_NAME - 2
    columns = [
        # A number that is cut in its middle would be another number, so only heads are cut.
        [_shorten(head, MOST_HEAD), *(_shorten(cells[i], room) for _, cells in rows)]
        for i, head in enumerate(heads)
    ]
    # Two arms stand beside each other wherever they can.
    pair = sum(2 + max(map(len, column)) for column in columns[:2])
    longest = 2 + max(len(name) for name, _ in rows)
    name_width = min(longest, max(LEAST_NAME, width - pair))
    lines: list[str] = []
    for block in _fill_blocks(columns, width - name_width):
        lines += [""] if lines else []
        lines += _format_block(block, sections, name_width)
    return lines


def _format_block(
    block: Sequence[Sequence[str]], sections: Sequence[TableSection], name_width: int
) -> list[str]:
    """Return some columns of the table, each with its head, below the titles of the sections."""
    widths = [max(map(len, column)) for column in block]
    cells = iter(zip(*block, strict=True))

    def list_lines(name: str) -> list[str]:
        first, *others = textwrap.wrap(
            name, name_width, initial_indent="  ", subsequent_indent="    "
        ) or [""]
        padded = [cell.rjust(width) for cell, width in zip(next(cells), widths, strict=True)]
        return ["  ".join([first.ljust(name_width), *padded]), *others]

    lines = list_lines("")
    for section in sections:
        lines.append(_shorten(section.title, LEAST_WIDTH))
        for name, _ in section.texts:
            lines += list_lines(name)
    return lines


def _fill_blocks(columns: Sequence[list[str]], room: int) -> list[list[list[str]]]:
    """Put columns beside each other as long as there is room."""
    blocks: list[list[list[str]]] = []
    left = 0
    for column in columns:
        width = 2 + max(map(len, column))
        if not blocks or width > left:
            blocks.append([])
            left = room
        blocks[-1].append(column)
        left -= width
    return blocks


def _shorten(text: str, width: int) -> str:
    """Cut a text in its middle, where labels differ least."""
    if len(text) <= width:
        return text
    head = (width - 2) // 2
    return f"{text[:head]}..{text[head + 2 - width :]}"


def format_markdown(results: Sequence[SetResult]) -> str:
    """Return a Markdown table for every set."""
    lines: list[str] = []
    for result in results:
        lines += [f"### {_escape_markdown(result.arm_set.title)}", ""] * bool(result.arm_set.title)
        heads = [_escape_markdown(head) for head in _heads(result)]
        lines += [_markdown_row(["", *heads]), _markdown_row(["---", *["---:"] * len(heads)])]
        for section in summarise(result):
            lines.append(
                _markdown_row([f"**{_escape_markdown(section.title)}**", *[""] * len(heads)])
            )
            lines += [
                _markdown_row([_escape_markdown(cell) for cell in (name, *cells)])
                for name, cells in section.texts
            ]
        lines.append("")
    return "\n".join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape_markdown(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    for character in "|*_`[]":
        escaped = escaped.replace(character, f"\\{character}")
    return escaped


def format_latex(results: Sequence[SetResult]) -> str:
    """Return a LaTeX table for every set; it needs the package booktabs."""
    return "\n".join(line for result in results for line in _latex_lines(result))


def _latex_lines(result: SetResult) -> list[str]:
    heads = [_escape_latex(head) for head in _heads(result)]
    lines = [f"\\begin{{tabular}}{{l{'r' * len(heads)}}}", "\\toprule"]
    lines.append(_latex_row(["", *heads]))
    for section in summarise(result):
        title = _escape_latex(section.title)
        lines += ["\\midrule", f"\\multicolumn{{{len(heads) + 1}}}{{l}}{{{title}}} \\\\"]
        lines += [_latex_row([_escape_latex(c) for c in (name, *cells)])
                  for name, cells in section.texts]  # fmt: skip
    return [*lines, "\\bottomrule", "\\end{tabular}", ""]


def _latex_row(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _escape_latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def format_csv(results: Sequence[SetResult]) -> str:
    """Return one row per quantity and arm, with its value and the ends of its 95 % interval.

    What is no number, or not known, has an empty value, and a text as the page shows it.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["set", "section", "quantity", "arm", "value", "low", "high", "text"])
    for result in results:
        for section in summarise(result):
            writer.writerows(_csv_rows(result, section))
    return stream.getvalue()


def _csv_rows(result: SetResult, section: TableSection) -> list[list[str]]:
    return [
        [result.arm_set.title, section.title, name, head, *_csv_numbers(cell.number), cell.text]
        for name, cells in section.rows
        for head, cell in zip(_heads(result), cells, strict=True)
    ]


def _csv_numbers(number: Interval) -> list[str]:
    numbers = (number.value, number.low, number.high)
    return [str(x) if math.isfinite(x) else "" for x in numbers]


FORMATS: Mapping[str, Callable[[Sequence[SetResult]], str]] = {
    "markdown": format_markdown,
    "latex": format_latex,
    "csv": format_csv,
}
"""The formats of the table by name."""
