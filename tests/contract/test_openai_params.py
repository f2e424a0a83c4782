"""What clients send along, and what they get besides the answer: ids, HEAD, turns sent back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.openai_server import CHAT, HELLO, RESPONSES, TEXT, ask, events, serving_of
from tests.support import random_artifact

from collm.serve.openai.responses_schema import ResponseRequest
from collm.serve.openai.schemas import ChatCompletionRequest, CompletionRequest
from collm.serve.openai.serving import Serving


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving_of(random_artifact(tmp_path_factory.mktemp("tiny") / "a")) as made:
        yield made


def answered(serving: Serving, path: str, body: dict[str, Any]) -> Any:
    response = ask(serving, path, body)
    assert response.status_code == 200, response.text
    return response.json()


def said(serving: Serving, *messages: dict[str, Any]) -> str:
    made = answered(serving, CHAT, {**HELLO, "messages": list(messages)})
    text: str = made["choices"][0]["message"]["content"]
    return text


def test_turns_may_have_what_clients_note_beside_the_text(serving: Serving) -> None:
    user = {"role": "user", "content": "the edge"}
    plain = said(serving, user, {"role": "assistant", "content": "no"}, user)
    part = {"type": "text", "text": "no", "cache_control": {"type": "ephemeral"}, "annotations": []}
    ways: tuple[dict[str, Any], ...] = (
        {"content": [part]},
        {"content": [{"type": "refusal", "refusal": "no"}]},
        {"content": None, "refusal": "no"},
        {"content": "no", "refusal": None, "tool_calls": [], "function_call": None},
    )
    for sent_back in ways:
        assert said(serving, user, {"role": "assistant", **sent_back}, user) == plain
    turns = [user, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, user]
    asked = {"model": "tiny", "input": turns, "max_output_tokens": 8, "ignore_eos": True}
    assert answered(serving, RESPONSES, asked)["output"][0]["content"][0]["text"] == plain


def test_no_stop_and_no_bound_can_be_written_out(serving: Serving) -> None:
    plain = answered(serving, CHAT, HELLO)["choices"]
    for stop in ("", [""], [], None):
        assert answered(serving, CHAT, {**HELLO, "stop": stop})["choices"] == plain
    context = serving.engine.artifact.architecture.context_length
    prompt = {"model": "tiny", "prompt": "the edge", "ignore_eos": True}
    for path, asked in (
        (CHAT, {**HELLO, "max_tokens": -1}),
        (CHAT, {**HELLO, "max_tokens": None, "max_completion_tokens": -1}),
        (TEXT, {**prompt, "max_tokens": -1}),
        (RESPONSES, {"model": "tiny", "input": "a", "ignore_eos": True, "max_output_tokens": -1}),
    ):
        assert answered(serving, path, asked)["usage"]["total_tokens"] == context


def test_what_openais_client_can_send_is_known_here(serving: Serving) -> None:
    chat = pytest.importorskip("openai.types.chat.completion_create_params")
    text = pytest.importorskip("openai.types.completion_create_params")
    responses = pytest.importorskip("openai.types.responses.response_create_params")
    for params, model in (
        (chat.CompletionCreateParamsBase, ChatCompletionRequest),
        (text.CompletionCreateParamsBase, CompletionRequest),
        (responses.ResponseCreateParamsBase, ResponseRequest),
    ):
        assert set(params.__annotations__) <= set(model.model_fields)
    cached = {"prompt_cache_options": {"mode": "explicit", "ttl": "30m"}}
    plain = answered(serving, CHAT, HELLO)["choices"]
    assert answered(serving, CHAT, {**HELLO, **cached})["choices"] == plain
    harmless: dict[str, Any] = {
        "background_options": {"completion_window": "soonest"},
        "context_management": [],
        "image": {"context_compression": "auto"},
        "moderation": None,
    }
    answered(serving, RESPONSES, {"model": "tiny", "input": "a", **cached, **harmless})


def test_a_stream_tells_the_offsets_of_the_whole_answer(serving: Serving) -> None:
    asked = {"model": "tiny", "prompt": "the edge", "max_tokens": 12, "logprobs": 0}
    free = answered(serving, TEXT, {**asked, "ignore_eos": True})["choices"][0]
    # Never reached, and held back for wherever it could begin.
    stop = [token + "\N{SNOWMAN}" for token in free["logprobs"]["tokens"]]
    asked = {**asked, "ignore_eos": True, "stop": stop}
    whole = answered(serving, TEXT, asked)["choices"][0]
    told = events(ask(serving, TEXT, {**asked, "stream": True}))
    entries = [one["choices"][0]["logprobs"] for one in told]
    offsets = [offset for one in entries if one for offset in one["text_offset"]]
    assert offsets == whole["logprobs"]["text_offset"] == free["logprobs"]["text_offset"]
    assert len(offsets) == 12


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/v1/models", "/v1/models/tiny", "/metrics", "/collm/status"]
)
def test_head_says_what_get_would_without_a_body(serving: Serving, path: str) -> None:
    got, told = ask(serving, path), ask(serving, path, method="HEAD")
    assert (told.status_code, told.content) == (200, b"")
    assert told.headers["content-type"] == got.headers["content-type"]
    assert ask(serving, "/v1/nothing", method="HEAD").status_code == 404
    assert ask(serving, CHAT, method="HEAD").status_code == 405
    assert not any("head" in one for one in ask(serving, "/openapi.json").json()["paths"].values())


def test_every_response_has_an_id_the_clients_own_where_it_is_sane(serving: Serving) -> None:
    for path, body in ((CHAT, HELLO), (CHAT, {**HELLO, "stream": True}), (CHAT, {}),
                       ("/healthz", None), ("/v1/nothing", None)):  # fmt: skip
        made = {ask(serving, path, body).headers["x-request-id"] for _ in range(2)}
        assert len(made) == 2 and all(one.startswith("req_") for one in made)
        given = {"X-Request-Id": "0f9c-4.a:b_c"}
        assert ask(serving, path, body, headers=given).headers["x-request-id"] == "0f9c-4.a:b_c"
    for odd in ("a b", "x" * 65, "<script>", ""):
        told = ask(serving, "/healthz", headers={"X-Request-Id": odd}).headers["x-request-id"]
        assert told.startswith("req_")


def test_what_nobody_expected_is_an_error_of_the_one_shape(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("of all things")

    given = {"X-Request-Id": "mine-1"}
    for module in ("guard.Guard._check", "app.status_json"):
        with monkeypatch.context() as patch:
            patch.setattr(f"collm.serve.openai.{module}", broken)
            caplog.clear()
            response = ask(serving, "/collm/status", headers=given)
        assert response.status_code == 500
        told = response.json()["error"]
        assert (told["type"], told["code"], told["param"]) == ("server_error", "server_error", None)
        assert response.headers["x-request-id"] == "mine-1"
        assert [
            record.getMessage() for record in caplog.records if record.levelname == "ERROR"
        ] == ["an answer failed (request mine-1)"]
        assert "of all things" in caplog.text
