"""The report as a page and as plots: from the raw figures alone, safe, and self-contained."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from collm.bench.table_figures import break_even
from collm.bench.table_page import page
from collm.bench.table_plots import capacity_plot, plots
from collm.cli.main import app

RAW: dict[str, Any] = json.loads(Path("docs/results/table.json").read_text(encoding="utf-8"))
CAPACITY = {
    "format": "collm-capacity", "target_seconds": 0.1,
    "results": [{"name": "plain cloud", "clients": 4}, {"name": "verified", "clients": 10}],
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return {plot.name: plot.svg for plot in plots(RAW)}


def test_a_page_loads_nothing_and_runs_nothing(drawn: dict[str, str]) -> None:
    text = page([RAW], [plots(RAW)], [capacity_plot(CAPACITY)])
    assert len(re.findall("<figure", text)) == len(drawn) + 1
    assert not re.search(r"<script|<link|<img|@import|(src|href)=\"https?:", text)
    assert "viewport" in text and "prefers-color-scheme" in text
    assert text.count('<div class="scroll"><table>') == text.count("</table></div>") > 2


def test_names_are_text(drawn: dict[str, str]) -> None:
    raw = deepcopy(RAW)
    raw["contenders"][0]["note"] = "<script>alert(1)</script>"
    raw["artifact"]["model"] = "<b onclick=x>"
    text = page([raw], [[]])
    assert "<script>" not in text and "<b onclick" not in text
    assert "&lt;script&gt;" in text


def test_plots_are_drawn_where_there_is_something_to_show(drawn: dict[str, str]) -> None:
    assert {"round-trips", "quality-and-work", "breakdown"} <= drawn.keys()
    one_link = {**RAW, "links": RAW["links"][:1]}
    assert "round-trips" not in {plot.name for plot in plots(one_link)}


def test_break_even_points_are_interpolated_between_links() -> None:
    for contender in RAW["contenders"]:
        at = break_even(RAW, contender["name"])
        trips = [link["round_trip_seconds"] for link in RAW["links"]]
        assert at is None or min(trips) <= at <= max(trips)


def test_capacity_bars_carry_the_multiple_of_plain_cloud() -> None:
    plot = capacity_plot(CAPACITY)
    assert plot.svg.startswith("<svg") and plot.name == "capacity"


def test_the_command_makes_it_again(tmp_path: Path) -> None:
    capacity = tmp_path / "capacity.json"
    capacity.write_text(json.dumps(CAPACITY), encoding="utf-8")
    words = ["bench", "report", "docs/results/table.json", "--capacity", str(capacity)]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"report.md", "report.html", "capacity.svg", "breakdown.svg"} <= made


@pytest.mark.parametrize("content", [None, "{", "[]", '{"format": "collm-capacity"}'])
def test_other_files_are_refused_in_a_line(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "some.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    done = CliRunner().invoke(app, ["bench", "report", str(path), "--out", str(tmp_path / "out")])
    assert done.exit_code != 0
    assert str(path) in str(done.exception) and "\n" not in str(done.exception)
    assert not (tmp_path / "out").exists()
