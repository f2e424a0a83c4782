"""The chat page in a browser, before a server that plays a script: see test_page_real.py for the
real one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tests.e2e.browser import launched
from tests.e2e.scripted_server import Script, scripted_server

pytestmark = pytest.mark.e2e

SKY = "Why is the sky blue?"


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


def ask(page: Page, text: str) -> None:
    page.get_by_label("Your question").fill(text)
    page.keyboard.press("Enter")


def finished(page: Page) -> None:
    expect(page.locator(".turn:last-child .answer").first).to_be_visible()
    expect(page.locator(".answer.live")).to_have_count(0)


def answer_text(page: Page) -> str:
    return page.locator(".turn:last-child .answer .text").inner_text()


def serious(page: Page) -> list[str]:
    """What axe finds that is serious or critical."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['html'][:200]}: {node['failureSummary']}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


# ------------------------------------------------------------------- a conversation


def test_an_answer_streams_and_escape_stops_it(page: Page, script: Script) -> None:
    ask(page, "slow, please")
    tokens = page.locator(".answer .t")
    expect(tokens.nth(3)).to_be_visible()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    seen = tokens.count()
    expect(tokens.nth(seen + 3)).to_be_visible()  # it grows
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    expect(page.locator(".answer-note")).to_contain_text("Stopped")
    assert script.closed.wait(5), "the server was not told"
    stopped_at = tokens.count()
    page.wait_for_timeout(150)
    assert tokens.count() == stopped_at


def test_what_was_said_goes_along_and_light_markdown_is_drawn(page: Page, script: Script) -> None:
    ask(page, "Write Python.")
    finished(page)
    expect(page.locator(".answer pre")).to_contain_text("return text[::-1]")
    expect(page.locator(".answer p code").first).to_have_text('reverse("edge")')
    ask(page, SKY)
    finished(page)
    last = page.locator(".turn:last-child")
    expect(last.locator("ol li")).to_have_count(3)
    expect(last.locator("strong")).to_have_text("Rayleigh scattering")
    assert "**" not in answer_text(page)
    said = script.bodies[-1]["messages"]
    assert [one["role"] for one in said] == ["user", "assistant", "user"]
    assert said[1]["content"].startswith("Slices can go backwards")
    assert "```python" in said[1]["content"]  # as it was written, not as it is drawn


def test_regenerate_keeps_the_answer_before(page: Page, script: Script) -> None:
    ask(page, SKY)
    finished(page)
    page.get_by_label("Mode", exact=True).select_option("standalone")
    page.get_by_role("button", name="Regenerate").click()
    expect(page.get_by_text("2 of 2")).to_be_visible()
    finished(page)
    assert answer_text(page).startswith("The sky is blue")
    page.get_by_role("button", name="Previous answer").click()
    assert answer_text(page).startswith("The sky looks blue")
    assert script.bodies[-1]["collm"] == {"mode": "standalone"}
    assert len(script.bodies[-1]["messages"]) == 1


def test_reload_keeps_conversations_and_they_can_be_renamed_and_deleted(page: Page) -> None:
    ask(page, SKY)
    finished(page)
    text = answer_text(page)
    tinted = page.locator(".answer .t.s-cloud").count()
    page.reload()
    expect(page.locator(".answer .t").first).to_be_visible()
    assert answer_text(page) == text
    assert page.locator(".answer .t.s-cloud").count() == tinted > 0

    page.get_by_role("button", name="New conversation").click()
    ask(page, "Write Python.")
    finished(page)
    names = page.locator(".conversation")
    expect(names).to_have_text(["Write Python.", SKY])
    page.get_by_role("button", name=f"Rename “{SKY}”").click()
    page.keyboard.type("Light")
    page.keyboard.press("Enter")
    expect(names).to_have_text(["Write Python.", "Light"])
    page.get_by_role("button", name="Delete “Write Python.”").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(names).to_have_text(["Light"])
    expect(page.get_by_text("What shall we write?")).to_be_visible()
    page.reload()
    expect(names).to_have_text(["Light"])
    names.first.click()
    expect(page.locator(".answer .t").first).to_be_visible()
    assert answer_text(page) == text


def test_an_answer_goes_on_while_another_conversation_is_looked_at(page: Page) -> None:
    ask(page, "slow, please")
    expect(page.locator(".answer .t").nth(3)).to_be_visible()
    page.keyboard.press("Control+Shift+O")
    expect(page.locator(".answer")).to_have_count(0)
    ask(page, SKY)
    finished(page)
    page.locator(".conversation", has_text="slow").click()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    seen = page.locator(".answer .t").count()
    expect(page.locator(".answer .t").nth(seen + 3)).to_be_visible()
    page.keyboard.press("Escape")


def test_export_and_import(page: Page, tmp_path: Path) -> None:
    ask(page, SKY)
    finished(page)
    with page.expect_download() as waited:
        page.get_by_role("button", name="Export this conversation").click()
    saved = tmp_path / waited.value.suggested_filename
    waited.value.save_as(saved)
    assert saved.name == "collm-why-is-the-sky-blue.json"
    written = json.loads(saved.read_text())
    assert written["format"] == "collm-conversations"
    (turn,) = written["conversations"][0]["turns"]
    (answer,) = turn["answers"]
    assert turn["ask"] == SKY
    assert "".join(token["text"] for token in answer["tokens"]) == answer["text"]
    assert answer["tokens"][0].items() >= {"source": "exit@15", "confidence": 0.97}.items()
    assert answer["summary"]["rounds"] == 14

    text = answer_text(page)
    page.locator("#import-file").set_input_files(saved)
    expect(page.locator(".conversation")).to_have_text([SKY, SKY])
    expect(page.locator(".answer .t").first).to_be_visible()
    assert answer_text(page) == text
    (tmp_path / "other.json").write_text('{"format": "something"}')
    page.locator("#import-file").set_input_files(tmp_path / "other.json")
    expect(page.locator("#notice")).to_contain_text("no export of this page")


def test_settings_go_into_requests(page: Page, script: Script) -> None:
    page.get_by_role("button", name="Settings").click()
    fields = {"System prompt": "Answer briefly.", "Temperature": "0.7", "Top p": "0.9"}
    fields |= {"Top k": "40", "Seed": "7", "Most tokens": "64", "Stop strings": "END\n\\n\\n"}
    fields |= {"Threshold": "0.8", "Criterion": "margin:0.3", "Longest draft": "4"}
    fields |= {"Deadline, ms a token": "50"}
    for label, value in fields.items():
        page.get_by_label(label, exact=True).fill(value)
    page.get_by_role("button", name="Save").click()
    page.get_by_label("Mode", exact=True).select_option("threshold")
    ask(page, SKY)
    finished(page)
    body = script.bodies[-1]
    assert body["messages"][0] == {"role": "system", "content": "Answer briefly."}
    sampled = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 7, "max_tokens": 64}
    assert body.items() >= sampled.items()
    assert body["stop"] == ["END", "\n\n"]
    shared = {"threshold": 0.8, "criterion": "margin:0.3", "draft": 4, "deadline_ms": 50}
    assert body["collm"] == {"mode": "threshold", **shared}
    assert body["stream_options"] == {"include_usage": True}
    page.get_by_role("button", name="New conversation").click()
    page.get_by_role("button", name=re.compile("Settings")).click()
    expect(page.get_by_label("Temperature")).to_have_value("0.7")  # as used last
    page.get_by_label("Temperature").fill("-1")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#settings")).to_be_visible()  # not taken


def test_compare_two_modes_side_by_side(page: Page, script: Script) -> None:
    page.get_by_label("Mode", exact=True).select_option("verified")
    page.get_by_role("button", name="Compare").click()
    page.get_by_label("Compare with mode").select_option("standalone")
    ask(page, SKY)
    expect(page.locator(".verdict")).to_contain_text("the same up to token")
    expect(page.locator(".verdict")).not_to_contain_text("so far")
    left, right = page.locator(".answer").all()
    assert "looks" in " ".join(left.locator(".differs").all_inner_texts())
    assert "Rayleigh" not in " ".join(right.locator(".differs").all_inner_texts())
    assert right.locator(".differs").count() < 10
    expect(left.locator(".summary")).to_contain_text("round trips")
    first, second = script.bodies[-2:]
    assert (first["collm"]["mode"], second["collm"]["mode"]) == ("verified", "standalone")
    assert first["seed"] == second["seed"]
    right.get_by_role("button", name="Go on from this one").click()
    page.get_by_role("button", name="Compare").click()
    ask(page, "And at night?")
    finished(page)
    assert script.bodies[-1]["messages"][1]["content"].startswith("The sky is blue")


# --------------------------------------------------------------- where tokens were made


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


# ----------------------------------------------------------------------------- trouble


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


# ------------------------------------------------------------- keyboard, eyes, ears


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
