"""Reference pages from the code: an mkdocs hook that fills in `<!-- generated: NAME -->`.

`commands` is every verb's help, `http MODULE.MODEL` the fields of a request or a response,
`metrics` what Prometheus reads, `limits` every bound and deadline, `errors` the tree of errors. So
a page cannot say what the code does not.

Not covered: HTTP routes; a test holds reference/http.md to the application's.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from collm import errors
from collm.cli.main import app
from collm.metrics import REGISTRY

ROOT = Path(__file__).parents[2]
MARK = re.compile(r"^<!-- generated: (\w+) ?([\w.]*) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs calls this with each page's text."""
    return MARK.sub(
        lambda found: http(found[2]) if found[1] == "http" else MAKERS[found[1]](), markdown
    )


def commands() -> str:
    """A section for each verb, with its usage, arguments and options; first a list of them."""
    verbs = list(_verbs())
    listed = [
        f"| [`collm {path}`](#{_anchor(path)}) | {_cell(verb.get_short_help_str(99))} |"
        for path, verb in verbs
    ]
    told = [line for path, verb in verbs for line in _verb(path, verb)]
    return "\n".join(["| verb | what |\n|---|---|", *listed, *told])


def _verbs() -> Iterator[tuple[str, Any]]:
    """`run`, `eval quality` and the like, in the order of `collm --help`."""
    root: Any = typer.main.get_command(app)
    for name, lazy in root.commands.items():
        load = getattr(lazy, "command", None)  # verbs may be imported when they are run
        verb = load() if callable(load) else lazy
        if verb.hidden:
            continue
        if hasattr(verb, "commands"):
            for inner, command in verb.commands.items():
                yield f"{name} {inner}", command
        else:
            yield name, verb


def _verb(path: str, verb: Any) -> Iterator[str]:
    context = typer.Context(verb, info_name=f"collm {path}")
    usage = " ".join(verb.collect_usage_pieces(context))
    yield f"\n## collm {path}\n"
    for paragraph in (verb.help or "").strip().split("\n\n"):
        yield f"{_cell(' '.join(paragraph.replace(chr(8), '').split()))}\n"
    yield f"```text\ncollm {path} {usage}\n```\n"
    rows = []
    for parameter in verb.params:
        record = parameter.get_help_record(context)
        if record is None or getattr(parameter, "hidden", False):
            continue
        left, said = record
        said, _, default = re.sub(r"\s*\[required\]$", "", said).partition("[default: ")
        rows.append(f"| `{left.strip()}` | {_cell(said.strip())} | {_code(default.rstrip(']'))} |")
    if rows:
        yield "| argument or option | what | default |\n|---|---|---|"
        yield from rows
    examples = [line.strip() for line in (verb.epilog or "").splitlines() if "collm " in line]
    if examples:
        yield "\n```sh\n" + "\n".join(examples) + "\n```"


def http(name: str) -> str:
    """A table of the fields that a request, or what comes back, has."""
    module, _, model = name.partition(".")
    made: Any = getattr(import_module(f"collm.serve.openai.{module}"), model)
    rows = ["| field | type | what |", "|---|---|---|"]
    schema = made.model_json_schema()
    for field, about in schema["properties"].items():
        needed = " (needed)" if field in schema.get("required", ()) else ""
        said = _cell(f"{about.get('description', '')}{needed}".strip())
        rows.append(f"| `{field}` | {_cell(_type(about, schema))} | {said} |")
    return "\n".join(rows)


def _type(about: dict[str, Any], schema: dict[str, Any]) -> str:
    """A JSON type in a word or two, with its range."""
    if "$ref" in about:
        return _type(schema["$defs"][about["$ref"].rpartition("/")[2]], schema)
    several = about.get("anyOf") or about.get("oneOf")
    if several:
        words = dict.fromkeys(_type(one, schema) for one in several if one.get("type") != "null")
        return " or ".join(words)
    if "enum" in about:
        return ", ".join(map(str, about["enum"]))
    if about.get("type") == "array":
        return f"list of {_type(about.get('items', {}), schema)}"
    low = about.get("minimum", about.get("exclusiveMinimum"))
    high = about.get("maximum", about.get("exclusiveMaximum"))
    bounds = f", {low} to {_short(high)}" if low is not None and high is not None else ""
    return f"{about.get('type', about.get('const', 'any'))}{bounds}"


def _short(number: float) -> str:
    power = int(number).bit_length() - 1
    if number > 9_999_999 and number == 2**power:
        return f"2^{power}"
    return f"{int(number):,}" if number == int(number) else f"{number:g}"


def metrics() -> str:
    """A table of names as Prometheus shows them."""
    rows = ["| metric | type | labels | what |", "|---|---|---|---|"]
    for collector in REGISTRY._collector_to_names:
        family = next(iter(collector.describe()))  # type: ignore[attr-defined]
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in getattr(collector, "_labelnames", ()))
        rows.append(f"| `{name}` | {family.type} | {labels} | {_cell(family.documentation)} |")
    return "\n".join(rows)


def limits() -> str:
    """A table for each group of bounds, from the source: the comments there name the groups."""
    source = (ROOT / "src/collm/limits.py").read_text()
    (made,) = (n for n in ast.parse(source).body if isinstance(n, ast.ClassDef))
    groups = {
        number: line.strip()[2:]
        for number, line in enumerate(source.splitlines(), 1)
        if line.startswith("    # ")
    }
    out: list[str] = []
    for at, field in enumerate(made.body):
        if not isinstance(field, ast.AnnAssign) or field.value is None:
            continue
        passed = [n for n in groups if n < field.lineno]
        if passed:
            out += [f"\n## {groups[max(passed)].capitalize()}\n"]
            out += ["| limit | default | what |\n|---|---|---|"]
            for number in passed:
                del groups[number]
        after = made.body[at + 1] if at + 1 < len(made.body) else None
        said = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            said = " ".join(str(after.value.value).split())
        value = ast.unparse(field.value).replace(" ** ", "^").replace(" * ", " × ")
        out.append(f"| `{ast.unparse(field.target)}` | {value} | {_cell(said)} |")
    return "\n".join(out)


def error_tree() -> str:
    """The tree that opens errors.py."""
    tree = (errors.__doc__ or "").split("::\n\n")[1].split("\n\nA message")[0]
    return f"```text\n{re.sub('^    ', '', tree, flags=re.MULTILINE)}\n```"


def _anchor(path: str) -> str:
    return f"collm-{path.replace(' ', '-')}"


def _cell(text: str) -> str:
    """Words for a table: nothing in them is markup, and bars do not end the cell."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


MAKERS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "metrics": metrics,
    "limits": limits,
    "errors": error_tree,
}
