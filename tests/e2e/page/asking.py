"""What every test of the page does."""

from __future__ import annotations

from playwright.sync_api import Page, expect

SKY = "Why is the sky blue?"


def ask(page: Page, text: str) -> None:
    page.get_by_label("Your question").fill(text)
    expect(page.locator("#send")).to_be_enabled()  # the page is listening
    page.keyboard.press("Enter")


def finished(page: Page) -> None:
    expect(page.locator(".turn:last-child .answer").first).to_be_visible()
    expect(page.locator(".answer.live")).to_have_count(0)


def answer_text(page: Page) -> str:
    return page.locator(".turn:last-child .answer .text").inner_text()
