"""Adds the generated pages to the site; mkdocs.yml names this file."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pages import messages, settings

MESSAGES = "<!-- all messages -->"
"""Where docs/troubleshooting.md wants the list of all messages."""
DECISIONS = """\
# Decisions

Each page gives a decision about the maths or the layout, its reasons and its price. A decision is
not edited later: a newer one replaces it.

"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of all settings and the list of decisions."""
    pages = sorted((Path(config.docs_dir) / "adr").glob("*.md"))
    decisions = "".join(f"* [{_read_title(page)}]({page.name})\n" for page in pages)
    files.append(File.generated(config, "settings.md", content=settings.make_page()))
    files.append(File.generated(config, "adr/index.md", content=DECISIONS + decisions))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the list of messages."""
    return markdown.replace(MESSAGES, messages.make_tables()) if MESSAGES in markdown else markdown


def on_page_content(html: str, **_: Any) -> str:
    """Link each figure to its file, which a phone can enlarge."""
    return re.sub(r'(<img [^>]*src="([^"]+)"[^>]*>)', r'<a href="\2">\1</a>', html)


def _read_title(page: Path) -> str:
    return re.sub("^# ", "", page.read_text(encoding="utf-8").splitlines()[0])
