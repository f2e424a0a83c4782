"""The benchmark report as one HTML file: nothing is loaded from elsewhere, no script runs.

The text is the Markdown report's, so that both say the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from markdown_it import MarkdownIt

from collm.bench.table_plots import Plot
from collm.bench.table_report import markdown

_STYLE = """
:root { color-scheme: light dark; --line: #d8dce2; --page: #fff; --ink: #22262b; --soft: #f4f6f8 }
@media (prefers-color-scheme: dark) {
  :root { --line: #3a4048; --page: #16191d; --ink: #e6e8eb; --soft: #21262c } }
body { margin: 0 auto; max-width: 74rem; padding: 1rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
code { background: var(--soft); padding: .1em .3em; border-radius: 3px; font-size: .85em }
.scroll { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap }
th { background: var(--soft); white-space: normal; vertical-align: bottom }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--page) }
figure { margin: 1.5rem 0; background: #fff; border: 1px solid var(--line); border-radius: 6px;
  padding: .5rem; overflow-x: auto }
figure svg { width: 100%; min-width: 34rem; height: auto; display: block }
figcaption { color: #444; font-size: .85rem; padding: .3rem .5rem }
"""


def page(
    raws: Sequence[Mapping[str, Any]], drawn: Sequence[Sequence[Plot]], more: Sequence[Plot] = ()
) -> str:
    """Runs one after the other, each with its plots; `more` stand at the end."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    body = []
    for raw, some in zip(raws, drawn, strict=True):
        head, _, rest = markdown(raw).partition("\n## ")
        pictures = "".join(_figure(plot) for plot in some)
        body.append(reader.render(head) + pictures + reader.render(f"## {rest}"))
    body.append("".join(_figure(plot) for plot in more))
    text = "\n".join(body).replace("<table>", '<div class="scroll"><table>')
    text = text.replace("</table>", "</table></div>")
    title = escape(f"collm bench table: {raws[0]['artifact']['model']}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body>{text}</body></html>\n"
    )


def _figure(plot: Plot) -> str:
    caption = escape(plot.caption)
    return f'<figure role="img" aria-label="{caption}">{plot.svg}<figcaption>{caption}</figcaption></figure>'  # noqa: E501
