"""Who runs which layers and how they are; what has crossed the link so far."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect
from tests.e2e.page.asking import SKY, ask, finished
from tests.e2e.page.scripted_server import Script

pytestmark = pytest.mark.e2e


_READ = """drawn => drawn.map((tier) => [
  tier.querySelector(".tier-name").textContent,
  tier.querySelector(".tier-note.end").textContent,
  tier.classList.contains("up"),
])"""


def tiers(page: Page) -> list[tuple[str, str, bool]]:
    """From the device on: name, layers, and whether it is drawn as well."""
    return [
        (name, layers, is_well)
        for name, layers, is_well in page.locator("#panel-topology .tier").evaluate_all(_READ)
    ]


def test_three_tiers_and_those_that_go(page: Page, script: Script) -> None:
    panel, away = page.locator("#panel-topology"), page.locator("#panel-topology .tier.down")
    device, server, cloud = (
        ("This device", "layers 1 to 15"),
        ("Edge server", "layers 16 to 20"),
        ("Cloud", "layers 21 to 30"),
    )
    assert tiers(page) == [(*device, True), (*server, True), (*cloud, True)]
    expect(panel).to_contain_text("1.9 ms there and back")
    trip = float(page.locator("#panel-trip").inner_text().split()[0])
    assert trip >= 22.9, "both ways count"

    script.cloud_ok = False
    expect(away).to_have_count(1)
    assert tiers(page) == [(*device, True), (*server, True), (*cloud, False)]
    expect(panel).to_contain_text("no connection")
    expect(page.locator("#panel-trip")).to_have_text("away")

    script.server_ok = False
    expect(away).to_have_count(2)
    assert tiers(page) == [(*device, True), (*server, False), (*cloud, False)]
    said = page.locator("#panel-topology svg").get_attribute("aria-label") or ""
    assert "Edge server: layers 16 to 20, away: nobody answers" in said
    assert "Cloud: layers 21 to 30, not known" in said
    expect(page.locator("#server-state")).to_have_text("the edge server is away")

    script.cloud_ok = script.server_ok = True
    expect(away).to_have_count(0)


def test_bytes_are_counted_while_the_answer_comes(page: Page) -> None:
    ask(page, "slow, please")
    up, down = page.locator("#panel-up"), page.locator("#panel-down")
    expect(up).to_contain_text("kB")
    before = up.inner_text()
    expect(up).not_to_have_text(before)
    expect(down).not_to_have_text("–")
    expect(page.locator(".answer.live")).to_have_count(1)
    page.get_by_role("button", name="Stop").click()
    expect(up).to_contain_text("kB")  # what it came to, though no summary did
    ask(page, SKY)
    finished(page)
    expect(up).to_have_text("205 kB")
