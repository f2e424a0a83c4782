"""Links from the documents into the repository: an mkdocs hook that brings what they point at.

A page may link to `../src/collm/wire/int8.py`, as it reads in a checkout. On the site there is no
checkout, and the site needs no network, so the file becomes a page of its own under `source/`. The
README is the start page's elder sibling and leads there; the change log and CONTRIBUTING have
their pages.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]+)((?:#[^)\s]*)?)\)")
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
LANGUAGES = {".py": "python", ".proto": "protobuf", ".service": "ini", ".toml": "toml"}


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add a page for every file outside docs/ that a page links to."""
    for page in [file for file in files if file.is_documentation_page()]:
        for target, _anchor in LINK.findall(page.content_string):
            path = _outside(page.src_uri, target)
            if path is not None and path not in PAGES and not files.get_file_from_path(_uri(path)):
                files.append(File.generated(config, _uri(path), content=_shown(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead such links to those pages."""
    here = posixpath.dirname(page.file.src_uri)

    def led(found: re.Match[str]) -> str:
        path = _outside(page.file.src_uri, found[1])
        if path is None:
            return found[0]
        uri = PAGES.get(path, _uri(path))
        return f"]({posixpath.relpath(uri, here or '.')}{found[2]})"

    return LINK.sub(led, markdown)


def _outside(page: str, target: str) -> str | None:
    """The path in the repository, for what lies outside docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return None if path.startswith("docs/") or not (ROOT / path).is_file() else path


def _uri(path: str) -> str:
    return f"source/{path}.md"


def _shown(path: str) -> str:
    text = (ROOT / path).read_text()
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n~~~~{language}\n{text}\n~~~~\n"
