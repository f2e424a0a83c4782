"""The chat page before the real server: `collm serve` with the embedded model, a real cloud process
and a link between them that is cut in the middle of an answer."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from tests.support import random_artifact

from collm.limits import DEFAULT_LIMITS
from collm.link.shaper import LinkShaper
from collm.link.shapes import LinkShape
from collm.serve.spawn import spawned_cloud

pytestmark = pytest.mark.e2e

SLOW = LinkShape(name="slow", delay_seconds=0.03)
"""So that an answer is not over before the link is cut."""


@contextmanager
def serve(artifact: Path, cloud: str, placement: int = 15) -> Iterator[str]:
    """`collm serve` as a process of its own; its address."""
    words = ["serve", str(artifact), "--cloud", cloud, "--port", "0"]
    words += ["--placement", str(placement)]
    with subprocess.Popen(
        [sys.executable, "-m", "collm", *words, "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            said = process.stdout.readline()
            found = re.search(r"http://\S+?:\d+", said)
            assert found, said or process.stderr.read()
            yield found[0]
        finally:
            process.terminate()
            process.communicate(timeout=20)


@pytest.fixture
def live_page(browser: Browser) -> Iterator[Page]:
    """A page of its own; anything it says on the console fails the test."""
    opened = browser.new_page(viewport={"width": 1360, "height": 860})
    opened.set_default_timeout(20_000)
    said: list[str] = []
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("console", lambda message: said.append(message.text))
    yield opened
    opened.close()
    assert not said


def finished(page: Page) -> str:
    expect(page.locator(".answer.live")).to_have_count(0, timeout=60_000)
    return page.locator(".answer .text").inner_text()


def test_a_cut_link_shows_previews_and_then_the_same_text(
    smollm2: Path, cloud: str, live_page: Page
) -> None:
    page = live_page
    expect.set_options(timeout=20_000)
    link = LinkShaper(SLOW, "127.0.0.1:0", cloud)
    try:
        with serve(smollm2, link.address) as address:
            page.goto(address)
            expect(page.locator("#server")).to_have_attribute("data-state", "well")
            expect(page.locator("#panel-topology")).to_contain_text("layers 16 to 30")
            page.get_by_role("button", name="Settings").click()
            page.get_by_label("Temperature").fill("0")
            page.get_by_label("Most tokens").fill("32")
            page.get_by_role("button", name="Save").click()
            page.get_by_label("Your question").fill("Why is the sky blue?")
            page.keyboard.press("Enter")
            certain = finished(page)
            assert len(certain) > 32
            sources = page.locator("#panel-shares li .share-name")
            expect(sources.filter(has_text="Cloud")).to_have_count(1)
            expect(sources.filter(has_text="Exit")).not_to_have_count(0)
            expect(page.locator("#panel-up")).to_contain_text("kB")

            page.get_by_role("button", name="Regenerate").click()
            expect(page.locator(".answer .t").nth(4)).to_be_visible()
            link.close()
            expect(page.locator(".tail .t.provisional").nth(3)).to_be_visible()
            expect(page.locator(".answer-note")).to_contain_text("The cloud is away")
            link = LinkShaper(SLOW, link.address, cloud)
            assert finished(page) == certain
            expect(page.locator(".provisional")).to_have_count(0)
            expect(page.locator("#panel-outage")).to_contain_text("previewed")
            assert page.locator(".t.stood, .t.fixed").count() > 0
            page.goto("about:blank")  # or it would ask a server that has ended how it is
    finally:
        link.close()
        expect.set_options(timeout=5000)


def test_device_edge_server_and_cloud_are_drawn(tmp_path: Path, live_page: Page) -> None:
    """All of them processes; the cloud is killed."""
    folder = random_artifact(tmp_path / "tiny", cuts=(1, 2, 3)).folder
    with spawned_cloud(folder, threads=1, limits=DEFAULT_LIMITS) as cloud:
        words = ["--blocks", "0:3", "--upstream", cloud.address]
        with (
            spawned_cloud(folder, threads=1, limits=DEFAULT_LIMITS, arguments=words) as server,
            serve(folder, server.address, placement=1) as address,
        ):
            live_page.goto(address)
            drawn = live_page.locator("#panel-topology .tier")
            expect(drawn).to_have_count(3)
            for tier, *words in (
                (0, "This device", "layer 1"),
                (1, "Edge server", "layers 2 to 3", server.address),
                (2, "Cloud", "layer 4", cloud.address),
            ):
                for word in words:
                    expect(drawn.nth(tier)).to_contain_text(word)
            expect(live_page.locator("#panel-topology .tier.up")).to_have_count(3)
            os.kill(cloud.pid, signal.SIGKILL)
            expect(live_page.locator("#panel-topology .tier.down")).to_have_count(1, timeout=20_000)
            expect(drawn.nth(2)).to_have_class(re.compile("down"))
            live_page.goto("about:blank")
