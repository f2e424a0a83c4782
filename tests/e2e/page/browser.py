"""Debian's Chromium for the page's tests and pictures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Playwright

CHROMIUM = Path("/usr/bin/chromium")
_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


def launched(playwright: Playwright) -> Browser:
    """A headless Chromium; skips the test where there is none, unless it is required."""
    if not CHROMIUM.exists() and not os.environ.get("COLLM_REQUIRE_CHROMIUM"):
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    return playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
