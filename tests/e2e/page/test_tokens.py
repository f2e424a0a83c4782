"""Where tokens were made, and what becomes of those that are not certain."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect
from tests.e2e.page.asking import SKY, answer_text, ask, finished
from tests.e2e.page.scripted_server import Script

pytestmark = pytest.mark.e2e


def test_each_token_tells_where_it_was_made(page: Page) -> None:
    ask(page, SKY)
    finished(page)
    page.locator(".answer .t.s-cloud", has_text="looks").hover()
    card = page.locator("#token-card")
    expect(card).to_contain_text("Cloud")
    expect(card).to_contain_text("64 %")
    expect(card).to_contain_text("34 ms")
    expect(card).to_contain_text("full model")
    # Two sources differ in more than colour.
    lines = {
        page.locator(f".answer .t.{style}").first.evaluate(
            "e => getComputedStyle(e).textDecorationStyle + getComputedStyle(e).textDecorationLine"
        )
        for style in ("s-exit-0", "s-exit-1", "s-server", "s-cloud")
    }
    assert len(lines) >= 3
    legend = page.locator("#panel-shares li")
    expect(legend).to_have_count(4)
    expect(page.locator("#panel-why")).to_contain_text("the cloud checks every token")
    expect(page.locator("#panel-up")).to_have_text("205 kB")
    expect(page.locator("#panel-topology")).to_contain_text("Edge server")
    shares = [int(text) for text in page.locator(".share-count").all_inner_texts()]
    assert sum(shares) == int(page.locator("#panel-tokens").inner_text())


def test_the_controllers_reason_is_shown(page: Page) -> None:
    page.get_by_label("Mode", exact=True).select_option("auto")
    ask(page, SKY)
    expect(page.locator("#panel-why")).to_contain_text("The link is fast: drafts pay")
    expect(page.locator("#panel-why")).to_contain_text("15 layers here, f16 on the link")


def test_previews_are_corrected_in_place(page: Page, script: Script) -> None:
    ask(page, "offline: what does the edge do?")
    previews = page.locator(".answer .tail .t.provisional")
    expect(previews).to_have_count(10)
    expect(page.locator(".answer-note")).to_contain_text("The cloud is away")
    expect(page.locator("#panel-outage")).to_contain_text("10 previews")
    expect(page.locator("#server-state")).to_have_text("the cloud is away")
    assert "mends what was wrong a little later" in answer_text(page)
    script.back.set()
    finished(page)
    assert "mends" not in answer_text(page)
    assert answer_text(page).endswith("corrects what was wrong, word by word.")
    expect(page.locator(".provisional")).to_have_count(0)
    assert page.locator(".t.stood").first.inner_text().strip() == "reads"
    corrected = page.locator(".t.fixed")
    assert corrected.first.inner_text().strip() == "correct"
    corrected.first.hover()
    expect(page.locator("#token-card")).to_contain_text("The preview went on: ·mends")
    expect(page.locator("#panel-outage")).to_contain_text("10 previewed, 6 of them corrected")


def test_previews_stay_when_the_reader_stops(page: Page) -> None:
    ask(page, "offline: what does the edge do?")
    expect(page.locator(".answer .tail .t.provisional")).to_have_count(10)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".answer .t.provisional")).to_have_count(10)
    assert "mends what was wrong" in answer_text(page)
