"""What goes wrong is shown where it happened, and can be tried again."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect
from tests.e2e.page.asking import SKY, answer_text, ask, finished
from tests.e2e.page.scripted_server import Script

pytestmark = pytest.mark.e2e


def test_an_error_in_the_middle_is_shown_where_it_happened(page: Page) -> None:
    for question, said in (("fail", "The cloud ended the session"), ("fail cut", "ended in the")):
        ask(page, question)
        expect(page.get_by_role("alert").last).to_contain_text(said)
        assert answer_text(page).startswith("The sky looks blue")  # what there was stays
    expect(page.get_by_role("button", name="Try again")).to_have_count(1)


def test_a_busy_server_is_asked_again(page: Page, script: Script) -> None:
    script.busy = 1
    ask(page, SKY)
    expect(page.get_by_role("alert")).to_contain_text("64 answers are under way")
    again = page.get_by_role("button", name="Try again")
    expect(again).to_contain_text("free in about")
    again.click()
    finished(page)
    assert "Rayleigh" in answer_text(page)
    assert len(script.bodies[-1]["messages"]) == 1


def test_a_wrong_setting_is_named_by_the_server(page: Page, script: Script) -> None:
    script.refuse = "threshold 0.5: not for this model"
    ask(page, SKY)
    expect(page.get_by_role("alert")).to_contain_text("threshold 0.5: not for this model")


def test_a_server_that_is_away_is_noticed(page: Page) -> None:
    page.context.set_offline(True)
    ask(page, SKY)
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    expect(page.locator("#server-state")).to_have_text("not connected")
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    finished(page)
    assert "Rayleigh" in answer_text(page)
    expect(page.locator("#server")).to_have_attribute("data-state", "well")


def test_a_key_is_asked_for_and_kept_in_the_tab_only(page: Page, script: Script) -> None:
    script.key = "open sesame"
    ask(page, SKY)
    page.get_by_label("This server wants an API key.").fill("open sesame")
    page.get_by_role("button", name="Use it").click()
    finished(page)
    assert "Rayleigh" in answer_text(page)
    kept = page.evaluate("[JSON.stringify(sessionStorage), JSON.stringify(localStorage)]")
    assert "open sesame" in kept[0]
    assert "open sesame" not in kept[1]


def test_what_a_model_writes_is_text_and_not_markup(page: Page) -> None:
    ask(page, "echo <img src=x onerror=alert(1)> <b>bold</b>")
    finished(page)
    expect(page.locator(".answer .text")).to_contain_text("<img src=x onerror=alert(1)>")
    expect(page.locator(".turn img, .turn b")).to_have_count(0)
