"""Pictures of the chat page in its states, for people to look at: `page_screenshots.py OUT`.

The server plays a script (tests/e2e/page/scripted_server.py), so the same pictures come out each
time. `--address URL` instead takes the two that README and docs show, of a `collm serve` there.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.e2e.page.browser import launched
from tests.e2e.page.scripted_server import Script, scripted_server

WIDE = (1360, 860)
PHONE = (390, 844)


def main() -> None:
    """Take them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--address", default="")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.address:
        _real(asked.out, asked.address)
        return
    with scripted_server() as (address, script), sync_playwright() as playwright:
        browser = launched(playwright)
        for name, (size, theme, act) in _SHOTS.items():
            script.reset()
            page = _opened(browser, address, size, theme)
            act(page, script)
            page.wait_for_timeout(400)
            page.screenshot(path=asked.out / f"{name}.png")
            page.context.close()
            print(asked.out / f"{name}.png")
        browser.close()


def _real(out: Path, address: str) -> None:
    """The two of a real server: what its model writes, greedily, and how."""
    with sync_playwright() as playwright:
        browser = launched(playwright)
        for theme in ("light", "dark"):
            page = _opened(browser, address, WIDE, theme)
            page.locator("#settings-button").click()
            page.get_by_label("Temperature").fill("0")
            page.get_by_label("Most tokens").fill("110")
            page.get_by_role("button", name="Save").click()
            _ask(page, "Why do leaves change their colour in autumn?")
            page.wait_for_timeout(8000)  # a line of round trips
            page.locator(".answer p .t[class*=s-exit]", has_text=re.compile(r"\w{4}")).last.hover()
            page.wait_for_timeout(400)
            page.screenshot(path=out / f"page-{theme}.png")
            page.context.close()
        browser.close()


def _opened(browser: Browser, address: str, size: tuple[int, int], theme: str) -> Page:
    width, height = size
    phone = width < 600
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if theme == "dark" else "light",
        has_touch=phone,
        is_mobile=phone,
        device_scale_factor=2 if phone else 1,
    )
    page = context.new_page()
    page.on("pageerror", lambda error: print("page error:", error, file=sys.stderr))
    page.goto(address)
    page.wait_for_selector("#server[data-state=well]")
    return page


def _ask(page: Page, text: str, *, wait: bool = True) -> None:
    page.locator("#ask").fill(text)
    page.keyboard.press("Enter")
    if wait:
        page.wait_for_selector(".turn:last-child .answer:not(.live)", timeout=20_000)
        page.wait_for_selector(".answer.live", state="detached")


def _answered(page: Page, script: Script) -> None:
    _ask(page, "Why is the sky blue?")
    page.wait_for_timeout(3500)  # a line of round trips


def _looked_at(page: Page, script: Script) -> None:
    _answered(page, script)
    page.locator(".t", has_text="waves").first.hover()


def _code(page: Page, script: Script) -> None:
    _ask(page, "Write a Python function that reverses a string.")
    _ask(page, "Why is the sky blue?")


def _compared(page: Page, script: Script) -> None:
    page.locator("#compare").click()
    page.locator("#mode").select_option("verified")
    page.locator("#mode-other").select_option("standalone")
    _ask(page, "Why is the sky blue?")


def _offline(page: Page, script: Script) -> None:
    _ask(page, "offline: what does the edge do?", wait=False)
    page.wait_for_selector(".answer-note .away")
    page.wait_for_timeout(1500)


def _corrected(page: Page, script: Script) -> None:
    _ask(page, "offline: what does the edge do?", wait=False)
    page.wait_for_selector(".answer-note .away")
    script.back.set()
    page.wait_for_selector(".answer.live", state="detached")


def _settings(page: Page, script: Script) -> None:
    page.locator("#settings-button").click()


def _shortcuts(page: Page, script: Script) -> None:
    page.locator("#ask").blur()
    page.keyboard.press("?")


def _failed(page: Page, script: Script) -> None:
    _ask(page, "fail in the middle")
    script.busy = 1
    _ask(page, "Why is the sky blue?")


def _key(page: Page, script: Script) -> None:
    script.key = "secret"
    _ask(page, "Why is the sky blue?")


def _phone_panel(page: Page, script: Script) -> None:
    _answered(page, script)
    page.locator("#panel-button").click()


def _phone_history(page: Page, script: Script) -> None:
    _ask(page, "Why is the sky blue?")
    page.locator("#history-button").click()


def _empty(page: Page, script: Script) -> None:
    page.wait_for_timeout(300)


_SHOTS: dict[str, tuple[tuple[int, int], str, Callable[[Page, Script], None]]] = {
    "page-light": (WIDE, "light", _looked_at),
    "page-dark": (WIDE, "dark", _looked_at),
    "empty-light": (WIDE, "light", _empty),
    "code-dark": (WIDE, "dark", _code),
    "compare-light": (WIDE, "light", _compared),
    "compare-dark": (WIDE, "dark", _compared),
    "offline-light": (WIDE, "light", _offline),
    "offline-dark": (WIDE, "dark", _offline),
    "corrected-light": (WIDE, "light", _corrected),
    "settings-light": (WIDE, "light", _settings),
    "settings-dark": (WIDE, "dark", _settings),
    "shortcuts-dark": (WIDE, "dark", _shortcuts),
    "failed-light": (WIDE, "light", _failed),
    "key-dark": (WIDE, "dark", _key),
    "phone-light": (PHONE, "light", _answered),
    "phone-empty-dark": (PHONE, "dark", _empty),
    "phone-panel-dark": (PHONE, "dark", _phone_panel),
    "phone-history-light": (PHONE, "light", _phone_history),
    "phone-compare-light": (PHONE, "light", _compared),
    "phone-settings-light": (PHONE, "light", _settings),
}

if __name__ == "__main__":
    main()
