"""The documents hold together: links lead somewhere, nothing is left to be filled in."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_resolve_and_nothing_is_a_placeholder(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    assert not re.search(r"^[A-Z]{4,}$|PLACEHOLDER", text, re.MULTILINE)
    assert "TODO" not in text


def test_the_readmes_engine_figures_are_those_of_the_raw_result() -> None:
    """What is claimed of speed and agreement stands in the committed JSON."""
    readme = (ROOT / "README.md").read_text()
    raw = json.loads((ROOT / "docs/results/engine-int4.json").read_text())
    decode = {r["name"]: r["seconds"]["median"] for r in raw["results"] if r["task"] == "decode"}
    rows = {"full depth, fast": "fast", "full depth, exact": "exact"}
    for start, name in (*rows.items(), ("standalone", "standalone exit@15")):
        row = next(line for line in readme.splitlines() if line.startswith(f"| {start}"))
        ratio = decode["llama.cpp"] / decode[name]
        assert f"| {1 / decode[name]:.1f} | {ratio:.2f} ×" in row
    for name in ("exact", "llama.cpp"):
        assert f"{100 * raw['agreement'][name]['share']:.1f} ±" in readme


def test_the_exits_figures_are_those_of_the_raw_result() -> None:
    """Agreement on chat at every cut stands in the committed JSON, and so on their card."""
    card = (ROOT / "docs/exits.md").read_text()
    raw = json.loads((ROOT / "docs/results/exits.json").read_text())
    row = next(line for line in card.splitlines() if line.startswith("| chat ("))
    cells = row.split("|")[2:-1]
    for cell, made in zip(cells, raw["exits"], strict=True):
        chat = next(part for part in made["domains"] if part["domain"] == "chat")
        assert cell.strip().startswith(f"{100 * chat['agreement']:.1f} ±")
