"""By keyboard, for screen readers, on phones, in both themes, from this server alone."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from tests.e2e.page.asking import SKY, ask, finished
from tests.e2e.page.scripted_server import Script

pytestmark = pytest.mark.e2e


def serious(page: Page) -> list[str]:
    """What axe finds that is serious or critical."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['html'][:200]}: {node['failureSummary']}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


def test_by_keyboard_only(page: Page) -> None:
    expect(page.get_by_label("Your question")).to_be_focused()
    page.keyboard.type("two")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("lines")
    page.keyboard.press("Enter")
    finished(page)
    expect(page.locator(".bubble")).to_contain_text("two\nlines")
    # Back through the composer to the answer, and from token to token.
    text = page.locator(".answer .text")
    for _ in range(12):
        page.keyboard.press("Shift+Tab")
        if text.evaluate("e => e === document.activeElement"):
            break
    expect(text).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    card = page.locator("#token-card")
    expect(card).to_contain_text("2 of")
    expect(page.locator("#announcer")).to_contain_text(
        "this device, exit after layer 15, 97 % sure"
    )
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    expect(page.get_by_label("Your question")).to_be_focused()
    page.keyboard.press("Control+.")
    expect(page.locator("#panel")).to_be_hidden()
    page.keyboard.press("Control+Shift+O")
    expect(page.get_by_text("What shall we write?")).to_be_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_finished_answer_is_announced_once(page: Page) -> None:
    ask(page, SKY)
    finished(page)
    expect(page.locator("#announcer")).to_contain_text("Answer: The sky looks blue")
    expect(page.locator(".answer .text")).to_have_attribute("aria-busy", "false")


def test_axe_finds_nothing_serious(page: Page, script: Script) -> None:
    """In light and dark, on a screen and a phone, with dialogs, drawers, errors and previews."""
    page.emulate_media(reduced_motion="reduce")
    assert serious(page) == []
    ask(page, SKY)
    finished(page)
    script.back.set()
    ask(page, "offline: what does the edge do?")
    finished(page)
    ask(page, "fail")
    finished(page)
    page.get_by_role("button", name="Compare").click()
    ask(page, "Write Python.")
    finished(page)
    script.back.clear()
    page.get_by_role("button", name="Compare").click()
    ask(page, "offline: what does the edge do?")
    expect(page.locator(".answer-note .away")).to_be_visible()
    page.locator(".t.fixed").first.hover()
    expect(page.locator("#token-card")).to_be_visible()
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme="light" if theme == "light" else "dark")
        ink = "rgb(29, 30, 32)" if theme == "light" else "rgb(233, 232, 229)"
        expect(page.locator(".brand")).to_have_css("color", ink)
        expect(page.locator(".answer p").last).to_have_css("color", ink)
        page.set_viewport_size({"width": 1360, "height": 844})
        assert serious(page) == []
        page.get_by_role("button", name=re.compile("Settings")).click()
        assert serious(page) == []
        page.keyboard.press("Escape")
        page.set_viewport_size({"width": 390, "height": 844})
        assert serious(page) == []
        page.get_by_role("button", name="How it is made").click()
        assert serious(page) == []
        page.keyboard.press("Escape")
    page.get_by_label("Your question").blur()
    page.keyboard.press("?")
    assert serious(page) == []


def test_on_a_phone_the_sides_are_drawers(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    expect(page.locator("#history")).to_be_hidden()
    expect(page.locator("#panel")).to_be_hidden()
    ask(page, SKY)
    finished(page)
    page.get_by_role("button", name="How it is made").click()
    expect(page.locator("#panel-rate")).to_be_visible()
    expect(page.locator("#main")).to_have_attribute("inert", "")
    page.keyboard.press("Escape")
    expect(page.locator("#panel")).to_be_hidden()
    page.get_by_role("button", name="Conversations", exact=True).click()
    page.locator("#new-chat").click()
    expect(page.locator("#history")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_chosen_theme_stays(page: Page) -> None:
    page.emulate_media(color_scheme="light")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    button = page.get_by_role("button", name="Theme")
    button.click()
    button.click()
    expect(button).to_have_text("Theme: dark")
    page.reload()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light


def test_everything_comes_from_the_server_itself(
    browser: Browser, server: tuple[str, Script], script: Script
) -> None:
    """No other host is asked for anything, and nothing breaks the page's own policy."""
    context = browser.new_context()
    page = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(server[0])
    ask(page, SKY)
    finished(page)
    context.close()
    assert all(url.startswith(server[0]) for url in asked)
    assert not said


def test_where_the_browser_keeps_nothing_the_page_still_answers(
    browser: Browser, server: tuple[str, Script], script: Script
) -> None:
    """Blocked site data: the very names of the storages throw."""
    context = browser.new_context()
    context.add_init_script(
        "for (const name of ['localStorage', 'sessionStorage', 'indexedDB'])"
        "  Object.defineProperty(window, name, {get() {"
        "    throw new DOMException('The operation is insecure.', 'SecurityError'); }});"
    )
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server[0])
    expect(page.locator("#notice")).to_contain_text("does not keep conversations")
    script.key = "open sesame"
    ask(page, SKY)
    page.get_by_label("This server wants an API key.").fill("open sesame")
    page.get_by_role("button", name="Use it").click()
    finished(page)
    expect(page.locator(".answer .text")).to_contain_text("Rayleigh")
    theme = page.get_by_role("button", name="Theme")
    theme.click()
    theme.click()
    expect(theme).to_have_text("Theme: dark")
    page.keyboard.press("Control+.")
    expect(page.locator("#panel")).to_be_hidden()
    page.get_by_role("button", name="New conversation").click()
    page.locator(".conversation").click()
    expect(page.locator(".answer .text")).to_contain_text("Rayleigh")
    context.close()
    assert not errors


def test_whoever_is_quicker_than_the_store_is_answered(
    browser: Browser, server: tuple[str, Script], script: Script
) -> None:
    context = browser.new_context()
    context.add_init_script(
        "const plain = IDBObjectStore.prototype.getAll;"
        "IDBObjectStore.prototype.getAll = function () {"
        "  const late = {}, real = plain.apply(this, arguments);"
        "  real.onsuccess = () => setTimeout(() => {"
        "    late.result = real.result; late.onsuccess(); }, 700);"
        "  return late; };"
    )
    page = context.new_page()
    page.goto(server[0])
    ask(page, SKY)
    finished(page)
    context.close()
