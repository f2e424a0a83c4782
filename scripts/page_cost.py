"""What a token costs the chat page's main thread: `page_cost.py [TOKENS]`.

Chromium's own account (parsing the stream, script, style, layout, paint; one process, software
rendering) of an answer that comes at once, and of one at a given pace, less what the idle page
takes in the same time. A program, not a test: it looks at the clock.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import CDPSession, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.e2e.page.browser import launched
from tests.e2e.page.scripted_server import scripted_server

_PARTS = ("TaskDuration", "ScriptDuration", "LayoutDuration", "RecalcStyleDuration")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokens", type=int, nargs="?", default=2000)
    tokens = parser.parse_args().tokens
    with scripted_server() as (address, _), sync_playwright() as playwright:
        browser = launched(playwright)
        for pace in (0, 200, 50):
            page = browser.new_page(viewport={"width": 1360, "height": 860})
            page.goto(address)
            page.wait_for_selector("#server[data-state=well]")
            devtools = page.context.new_cdp_session(page)
            devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
            count = tokens if pace != 50 else min(tokens, 500)
            _report(page, devtools, count, pace)
            page.close()
        browser.close()


def _report(page: Page, devtools: CDPSession, tokens: int, pace: int) -> None:
    page.wait_for_timeout(1500)
    idle = _busy(devtools, lambda: page.wait_for_timeout(4000))
    took = _busy(devtools, lambda: _stream(page, tokens, pace))
    seconds = took.pop("seconds")
    share = seconds / idle.pop("seconds")
    parts = {name: 1e3 * (took[name] - share * idle[name]) / tokens for name in _PARTS}
    what = f"{pace} tokens a second" if pace else "at once"
    print(f"{tokens} tokens, {what} ({seconds:.1f} s), ms a token: ", end="")
    print(", ".join(f"{name.removesuffix('Duration')} {ms:.3f}" for name, ms in parts.items()))


def _stream(page: Page, tokens: int, pace: int) -> None:
    page.locator("#ask").fill(f"long {tokens} {pace}")
    page.keyboard.press("Enter")
    # Not wait_for_selector: it looks at the page in every frame, which is dearer than the tokens.
    for _ in range(480):
        page.wait_for_timeout(250)
        if page.locator(".answer:not(.live) .summary").count():
            return
    raise SystemExit("the answer did not end within two minutes")


def _busy(devtools: CDPSession, act: Callable[[], object]) -> dict[str, float]:
    before, began = _metrics(devtools), time.perf_counter()
    act()
    after = _metrics(devtools)
    found = {name: after[name] - before[name] for name in _PARTS}
    return {**found, "seconds": time.perf_counter() - began}


def _metrics(devtools: CDPSession) -> dict[str, float]:
    return {one["name"]: one["value"] for one in devtools.send("Performance.getMetrics")["metrics"]}


if __name__ == "__main__":
    main()
