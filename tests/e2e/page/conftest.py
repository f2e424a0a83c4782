"""The page in a browser: one browser a file, a fresh profile for each test.

Playwright has an event loop of this thread as long as it runs: tests that begin one of their own
may follow on the same worker.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tests.e2e.page.browser import launched
from tests.e2e.page.scripted_server import Script, scripted_server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = launched(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Script]]:
    with scripted_server() as served:
        yield served


@pytest.fixture
def script(server: tuple[str, Script]) -> Script:
    server[1].reset()
    return server[1]


@pytest.fixture
def page(browser: Browser, server: tuple[str, Script], script: Script) -> Iterator[Page]:
    """A fresh browser profile at the page; an error in the page's code fails the test."""
    errors: list[str] = []
    context = browser.new_context(viewport={"width": 1360, "height": 860})
    context.set_default_timeout(8000)
    opened = context.new_page()
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(server[0])
    expect(opened.locator("#server")).to_have_attribute("data-state", "well")
    yield opened
    context.close()
    assert not errors
