"""Conversations: asked, stopped, regenerated, compared, kept, exported."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from tests.e2e.page.asking import SKY, answer_text, ask, finished
from tests.e2e.page.scripted_server import Script

pytestmark = pytest.mark.e2e


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


def test_a_conversation_deleted_while_it_is_answered_stays_deleted(
    page: Page, script: Script
) -> None:
    ask(page, "slow, please")
    expect(page.locator(".answer .t").nth(3)).to_be_visible()
    page.get_by_role("button", name="Delete “slow, please”").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_text("What shall we write?")).to_be_visible()
    assert script.closed.wait(5), "the server was not told"
    ask(page, SKY)  # what ended meanwhile has been kept, if it was
    finished(page)
    expect(page.locator(".conversation")).to_have_text([SKY])
    page.reload()
    expect(page.locator(".conversation")).to_have_text([SKY])


def test_what_was_set_and_chosen_is_there_after_another_conversation(page: Page) -> None:
    ask(page, "Write Python.")
    finished(page)
    page.get_by_role("button", name="New conversation").click()
    page.get_by_role("button", name="Compare").click()
    ask(page, SKY)
    finished(page)
    page.get_by_role("button", name="Go on from this one").click()
    page.get_by_role("button", name=re.compile("Settings")).click()
    page.get_by_label("Temperature").fill("0.3")
    page.get_by_role("button", name="Save").click()

    def is_as_it_was(name: str) -> None:
        page.locator(".conversation", has_text="Python").click()
        expect(page.locator(".answer")).to_have_count(1)
        page.locator(".conversation", has_text=name).click()
        second = page.locator(".answer").nth(1)
        expect(second.get_by_role("button", name="Goes on from here")).to_be_visible()
        page.get_by_role("button", name=re.compile("Settings")).click()
        expect(page.get_by_label("Temperature")).to_have_value("0.3")
        page.keyboard.press("Escape")

    is_as_it_was(SKY)
    page.locator(".conversation", has_text="Python").click()
    expect(page.locator(".answer")).to_have_count(1)
    page.get_by_role("button", name=f"Rename “{SKY}”").click()
    page.keyboard.type("Light")
    page.keyboard.press("Enter")
    is_as_it_was("Light")
    page.reload()
    is_as_it_was("Light")


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


def test_settings_of_other_modes_stay_at_home(page: Page, script: Script) -> None:
    """In the server's own mode (verified), too: it would refuse the whole question."""
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Deadline, ms a token").fill("50")
    page.get_by_label("Draft ahead").fill("0.5")
    page.get_by_label(re.compile("Draft what followed")).check()
    expect(page.locator("#set-deadline_ms-hint")).to_have_text("Not used in mode verified")
    expect(page.locator("#set-ahead-hint")).to_contain_text("From this confidence on")
    page.get_by_role("button", name="Save").click()
    ask(page, SKY)
    finished(page)
    assert script.bodies[-1]["collm"] == {"ahead": 0.5, "lookup": True}
    script.mode = "threshold"
    expect(page.get_by_label("Mode", exact=True)).to_contain_text("threshold (default)")
    ask(page, SKY)
    finished(page)
    assert script.bodies[-1]["collm"] == {"deadline_ms": 50}
    page.get_by_label("Mode", exact=True).select_option("auto")
    page.get_by_role("button", name=re.compile("Settings")).click()
    expect(page.locator("#set-deadline_ms-hint")).to_have_text("Not used in mode auto")


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
