"""The documents hold together: links lead somewhere, nothing is left to be filled in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from collm.bench import adapt, wire
from collm.bench.table_report import markdown

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


def test_the_servers_figures_are_those_of_the_raw_result() -> None:
    """What the server costs stands in the committed JSON, and is what was promised."""
    page = (ROOT / "docs/benchmarks.md").read_text()
    raw = json.loads((ROOT / "docs/results/serve.json").read_text())
    for start, name in (("first token", "first_token"), ("each token after", "each_token")):
        row = next(line for line in page.splitlines() if line.startswith(f"| {start}"))
        for part in ("without", "with", "more"):
            assert f"{1000 * raw[name][part]['median']:.2f}" in row
    assert raw["first_token"]["more"]["median"] <= max(
        0.015, 0.1 * raw["first_token"]["without"]["median"]
    )
    assert max(raw["each_token"]["more"]["median"], raw["bare"]["on_its_way"]) <= 0.0003
    crowd = raw["crowd"]
    assert crowd["finished"] == crowd["streams"] == 50
    assert f"{crowd['tokens_per_second']:.1f} tokens/s together" in page


def test_the_modes_figures_are_those_of_the_raw_results() -> None:
    """Agreement, savings and requests in docs/modes.md stand in the committed JSON."""
    page = (ROOT / "docs/modes.md").read_text().splitlines()

    def cells(start: str) -> list[str]:
        row = next(line for line in page if line.startswith(f"| {start}"))
        return [cell.strip() for cell in row.split("|")[2:-1]]

    def figures(name: str, label: str, domain: str) -> dict[str, dict[str, float]]:
        raw = json.loads((ROOT / f"docs/results/{name}.json").read_text())["settings"]
        return next(r["figures"] for r in raw if (r["label"], r["domain"]) == (label, domain))

    for start, label in (
        ("threshold confidence:0.4,", "threshold confidence:0.4"),
        ("threshold confidence:0.85,", "threshold confidence:0.85 exits=20"),
        ("refine, defaults", "refine confidence:0.6"),
    ):
        made = figures("quality-modes", label, "all")
        agreement, _, requests, time, _ = cells(start)
        assert agreement.startswith(f"{100 * made['agreement']['value']:.1f} ±")
        assert requests == f"{made['requests_per_token']['value']:.2f}"
        assert time.startswith(f"{100 * made['saved_time']['value']:.1f} ±")
    for start, label in (
        ("exits 5 and 15, states of cut 5", "threshold risk exits=5,15"),
        ("exits 5 and 15, states of cut 15", "threshold risk exits=5,15 first_cut=15"),
        ("exits 5 and 20", "threshold risk exits=5,20 first_cut=20"),
    ):
        for cell, domain in zip(cells(start), ("chat", "prose", "code"), strict=False):
            assert (
                cell
                == f"{100 * figures('quality-098', label, domain)['saved_time']['value']:.1f} %"
            )
    policies = json.loads((ROOT / "docs/results/policies.json").read_text())["comparisons"]
    for at in (0.9, 0.95, 0.98):
        row = cells(f"{100 * at:.0f} % |")
        for cell, kind in (
            (row[1], "learned policy @5+10+15+20"),
            (row[2], "learned policy-linucb @5+10+15+20"),
            (row[3], "hybrid"),
        ):
            found = next(
                c for c in policies if (c["kind"], c["what"], c["at"]) == (kind, "requests", at)
            )
            assert cell.startswith(f"{found['value']:.3f}: ")


def test_the_benchmark_report_is_made_from_its_raw_result() -> None:
    """docs/benchmarks.md ends with what the committed JSON gives, headings a level lower."""
    raw = json.loads((ROOT / "docs/results/table.json").read_text())
    report = "".join(
        f"#{line}" if line.startswith("#") else line
        for line in markdown(raw).splitlines(keepends=True)
    )
    assert (ROOT / "docs/benchmarks.md").read_text().endswith(report)


def test_the_capacity_table_says_what_was_measured() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text()
    results = json.loads((ROOT / "docs/results/capacity.json").read_text())["results"]
    plain = results[0]["clients"]
    for one in results:
        level = next(c for c in one["curve"] if c["clients"] == one["clients"])
        rate = level["tokens_per_second"]
        figures = (
            f"| {one['clients']} | {one['clients'] / plain:.1f} | {rate:.0f} | "
            f"{1000 * level['cloud_cpu'] / rate:.1f} ms | "
            f"{one['identical']} of {one['answers']} |"
        )
        assert figures in page, one["name"]


@pytest.mark.parametrize("made", [wire, adapt], ids=["wire", "adapt"])
def test_what_travels_is_what_was_measured(made: ModuleType) -> None:
    name = made.__name__.rpartition(".")[2]
    raw = json.loads((ROOT / f"docs/results/{name}.json").read_text())
    assert made.markdown(raw) in (ROOT / "docs/transmission.md").read_text()
