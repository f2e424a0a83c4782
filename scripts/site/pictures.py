"""Pictures in light and in dark: an mkdocs hook for the SVG files in docs/pictures.

Each has its colours as CSS variables and a `prefers-color-scheme: dark` block, which is right
wherever the reader's system decides. On the site the reader decides, with a button; so there each
file is split into one for light and one for dark, and the theme shows the fitting one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

DARK = "@media (prefers-color-scheme: dark)"
IMAGE = re.compile(r"!\[([^\]]*)\]\(((?:\.\./)*pictures/[\w-]+)\.svg\)")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the two forms of every picture."""
    for file in list(files):
        if file.src_uri.startswith("pictures/") and file.src_uri.endswith(".svg"):
            drawn = Path(file.abs_src_path or "").read_text()
            for scheme, media in (("light", "@media not all"), ("dark", "@media all")):
                name = file.src_uri.replace(".svg", f".{scheme}.svg")
                content = drawn.replace(DARK, media)
                files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Show both; the theme hides one. The second has no words for those who hear the page."""
    return IMAGE.sub(
        r"![\1](\2.light.svg#only-light)![\1](\2.dark.svg#only-dark)",
        markdown,
    )
