"""What the server refuses: in OpenAI's shape, with the right status, and never with a 5xx."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.openai_server import CHAT, GREEDY, HELLO, RESPONSES, TEXT, app_of, ask, serving_of
from tests.support import random_artifact

from collm.limits import DEFAULT_LIMITS
from collm.link.credentials import TokenFile
from collm.model.tokenizer import Tokenizer
from collm.serve.openai.body import read_json
from collm.serve.openai.errors import ApiError
from collm.serve.openai.generation import generations
from collm.serve.openai.guard import allowed_hosts
from collm.serve.openai.schemas import ChatCompletionRequest
from collm.serve.openai.serving import Serving

IMAGE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
CALLS = {
    "role": "assistant", "content": None,
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}  # fmt: skip
KEY = "sk-0123456789abcdef"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving_of(random_artifact(tmp_path_factory.mktemp("tiny") / "a")) as made:
        yield made


def refused(response: Any, status: int) -> dict[str, Any]:
    """What the error says."""
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"] and "\n" not in body["error"]["message"]
    found: dict[str, Any] = body["error"]
    return found


@pytest.mark.parametrize(
    ("changes", "param", "code", "said"),
    [
        ({"tools": TOOLS}, "tools", "unsupported_parameter", "calls no tools"),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter", "no functions"),
        ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter", "calls no tools"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "unsupported_parameter", "expected 0"),
        ({"presence_penalty": 1}, "presence_penalty", "unsupported_parameter", "expected 0"),
        ({"logit_bias": {"5": 10}}, "logit_bias", "unsupported_parameter", "not supported"),
        ({"min_p": 0.1}, "min_p", "unsupported_parameter", "top_p and top_k"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_parameter", "writes text"),
        ({"audio": {"voice": "a"}}, "audio", "unsupported_parameter", "not supported"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_parameter", "reasoning"),
        ({"temperatur": 1}, "temperatur", "unknown_parameter", "no such parameter"),
        ({"temperature": 3}, "temperature", "invalid_value", "less than or equal to 2"),
        ({"temperature": "1"}, "temperature", "invalid_value", "valid number"),
        ({"top_p": -0.1}, "top_p", "invalid_value", "greater than or equal to 0"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value", "greater than or equal to 1"),
        ({"max_completion_tokens": 4}, "max_tokens", "invalid_value", "give one of them"),
        ({"n": 0}, "n", "invalid_value", "greater"),
        ({"n": 128}, "n", "invalid_value", "64 at most"),
        ({"seed": 2**70}, "seed", "invalid_value", ""),
        ({"stop": "a" * 1001}, "stop", "invalid_value", "at most 1000 characters"),
        ({"max_tokens": -2}, "max_tokens", "invalid_value", "greater than or equal to 1"),
        ({"max_tokens": 10**6 + 1}, "max_tokens", "invalid_value", "equal to 1000000"),
        ({"moderation": {"model": "m"}}, "moderation", "unsupported_parameter", "not supported"),
        ({"Foo": 1}, "Foo", "unknown_parameter", "Foo: there is no such"),
        ({"x-y": 1}, "x-y", "unknown_parameter", "'x-y': there is no such"),
        ({"": 1}, "", "unknown_parameter", "'': there is no such"),
        ({"str": 1}, "str", "unknown_parameter", "str: there is no such"),
        ({"a\nb": 1}, "a b", "unknown_parameter", "there is no such"),
        ({"collm": {"topK": 1}}, "collm.topK", "unknown_parameter", "expected one of mode, thr"),
        ({"messages": [{"role": "user", "content": "x", "toolCalls": []}]}, "messages.0.toolCalls",
         "unknown_parameter", "no such parameter"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_value", "string"),
        ({"metadata": {"A-b": "x" * 513}}, "metadata", "invalid_value", "at most 512"),
        ({"metadata": {"x" * 65: "a"}}, "metadata." + "x" * 65, "invalid_value", "at most 64"),
        ({"metadata": {str(i): "a" for i in range(17)}}, "metadata", "invalid_value", "at most 16"),
        ({"stop": ["a"] * 17}, "stop", "invalid_value", "at most 16"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value", "goes with logprobs"),
        ({"stream": 1}, "stream", "invalid_value", "boolean"),
        ({"collm": {"mode": "magic"}}, "collm.mode", "invalid_value", "verified"),
        ({"collm": {"mode": "threshold"}}, "collm.mode", "invalid_value", "this server has"),
        ({"collm": {"luck": 1}}, "collm.luck", "unknown_parameter", "expected one of mode, thr"),
        ({"collm": {"criterion": "luck:1", "mode": "standalone"}}, None, "invalid_value", "luck"),
        ({"collm": {"deadline_ms": 5}}, None, "invalid_value", "mode threshold"),
        ({"response_format": {"type": "xml"}}, "response_format", "invalid_value", "json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
         "response_format.json_schema.schema", "missing_required_parameter", ""),
        ({"response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"type": "nothing"}}}}, "response_format", "invalid_value", ""),
        ({"response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"multipleOf": True}}}}, "response_format", "invalid_value", ""),
        ({"response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"multipleOf": 10**400}}}}, "response_format", "invalid_value",
         "multipleOf"),
        ({"messages": []}, "messages", "invalid_value", "at least 1 item"),
        ({"messages": None}, "messages", "invalid_value", "list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role",
         "unsupported_value", "role 'robot'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role",
         "unsupported_value", "calls no tools"),
        ({"messages": [{"role": "function", "name": "f", "content": None}]}, "messages.0.role",
         "unsupported_value", "calls no tools"),
        ({"messages": [{"role": "user", "content": "x"}, CALLS,
                       {"role": "tool", "tool_call_id": "c", "content": "blue"}]},
         "messages.1.tool_calls", "unsupported_value", "calls no tools"),
        ({"messages": [{"role": "assistant", "content": None, "function_call": {"name": "f"}}]},
         "messages.0.function_call", "unsupported_value", "calls no tools"),
        ({"messages": [{"role": "user", "content": IMAGE}]}, "messages.0.content.0.type",
         "unsupported_value", "text only"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing_required_parameter", ""),
        ({"messages": [{"role": "user", "content": "many words " * 500}]}, "messages",
         "context_length_exceeded", "the model's context is 512"),
    ],
)  # fmt: skip
def test_a_chat_that_cannot_be_run_says_why(
    serving: Serving, changes: dict[str, Any], param: str | None, code: str, said: str
) -> None:
    for stream in (False, True):
        body = (
            {**HELLO, **changes} if "stream" in changes else {**HELLO, **changes, "stream": stream}
        )
        error = refused(ask(serving, CHAT, body), 400)
        assert (error["param"], error["code"]) == (param, code), error
        assert error["type"] == "invalid_request_error"
        assert said in error["message"]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 0}, "echo"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt.0"),
        ({"prompt": [1, "a"]}, "prompt.1"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": [-1]}, "prompt.0"),
        ({"prompt": ["a"] * 40, "n": 2}, "n"),
        ({"logprobs": 6}, "logprobs"),
    ],
)
def test_a_completion_that_cannot_be_run_says_why(
    serving: Serving, changes: dict[str, Any], param: str
) -> None:
    body = {"model": "tiny", "prompt": "the edge", "max_tokens": 2, **changes}
    assert refused(ask(serving, TEXT, body), 400)["param"] == param


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"tools": TOOLS}, "tools", "calls no tools"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the turns so far"),
        ({"conversation": "conv_1"}, "conversation", "not kept here"),
        ({"reasoning": {"effort": "high"}}, "reasoning", "no reasoning"),
        ({"background": True}, "background", "not supported"),
        ({"truncation": "auto"}, "truncation", "not supported"),
        ({"include": ["file_search_call.results"]}, "include", "not supported"),
        ({"top_logprobs": 2}, "top_logprobs", "not supported"),
        ({"max_tokens": 2}, "max_tokens", "no such parameter"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater than or equal to 1"),
        ({"context_management": [{"type": "compaction"}]}, "context_management", "shorten the"),
        ({"moderation": {"model": "m"}}, "moderation", "not supported"),
        ({"input": [{"role": "user", "content": "a"}] * 4096, "instructions": "b"}, "input",
         "at most 4095 items"),
        ({"metadata": {"a": {}}}, "metadata.a", "string"),
        ({"input": []}, "input", "at least 1 item"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
         "input.0.content.0.type", "text only"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0.type",
         "messages only"),
        ({"input": "many words " * 500}, "input", "context"),
        ({"text": {"verbosity": "high"}}, "text.verbosity", "not supported"),
        ({"text": {"format": {"type": "xml"}}}, "text.format", "json_schema"),
    ],
)  # fmt: skip
def test_a_response_that_cannot_be_made_says_why(
    serving: Serving, changes: dict[str, Any], param: str, said: str
) -> None:
    error = refused(ask(serving, RESPONSES, {"model": "tiny", "input": "hello", **changes}), 400)
    assert error["param"] == param and said in error["message"], error


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b'"text"',
        b'{"model": NaN}',
        b'{"model": "tiny", "temperature": 1e999, "messages": []}',
        b'{"model": "tiny", "stream": true, "metadata": {"a": -1e999}, "messages": []}',
        b'{"tools": [' + b"[]," * 70_000 + b"[]]}",
        b'{"prompt": [' + b"1," * 600_000 + b"1]}",
        b'{"model": "tiny", "seed": ' + b"9" * 5000 + b', "messages": []}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\xff"}]}',
        b"\xff\xfe{\x00}\x00",
        b"[" * 100_000,
        b'{"a":' * 60_000 + b"1" + b"}" * 60_000,
        b'{"model": "tiny", "metadata": ' + b'{"a":' * 90 + b"1" + b"}" * 90 + b"}",
        json.dumps({f"key{i}": 1 for i in range(100_000)}).encode(),
    ],
    ids=lambda body: body[:24].decode(errors="replace"),
)
def test_bytes_that_are_no_usable_json_are_a_400(serving: Serving, body: bytes) -> None:
    started = time.monotonic()
    refused(ask(serving, CHAT, body), 400)
    assert time.monotonic() - started < 5


def test_what_is_bounded_is_values_not_what_a_text_says() -> None:
    text = '[{"a": \\, \'' * 100_000
    assert read_json(json.dumps({"prompt": text}).encode()) == {"prompt": text}
    for open_ended in (b'"' + b'\\"[' * 400_000, b'["\\' * 400_000, b'"' * 2**21 + b"[" * 70_000):
        with pytest.raises(ApiError):
            read_json(open_ended)
    with pytest.raises(ApiError, match="1e999 is too large"):
        read_json(b'{"a": [1e999]}')


def test_half_a_surrogate_pair_is_found_and_whole_ones_are_not() -> None:
    assert read_json(rb'"\ud83d\ude00"') == "\N{GRINNING FACE}"
    with pytest.raises(ApiError, match="surrogate"):
        read_json(rb'"\ude00\ud83d"')


def test_a_million_wrong_values_do_not_make_a_million_errors(serving: Serving) -> None:
    body = b'{"model": "tiny", "prompt": [' + b"0.5," * 500_000 + b"0.5]}"
    assert refused(ask(serving, TEXT, body), 400)["param"] == "prompt.0"


def test_too_large_a_body_is_refused_before_it_is_read(serving: Serving) -> None:
    most = DEFAULT_LIMITS.max_http_body_bytes
    told = {"Content-Length": str(most + 1)}
    assert refused(ask(serving, CHAT, b"{}", headers=told), 413)["code"] == "request_too_large"
    refused(ask(serving, CHAT, b" " * (most + 1)), 413)


def test_a_text_that_cannot_fit_is_refused_before_it_is_cut_into_tokens(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> list[int]:
        raise AssertionError("it was")

    monkeypatch.setattr(Tokenizer, "_ids", never)
    text = "a" * (512 * serving.engine.tokenizer.longest_bytes + 1)
    for path, told in (
        (CHAT, {"messages": [{"role": "user", "content": text}]}),
        (TEXT, {"prompt": ["a" * 3, text][1:]}),
        (RESPONSES, {"input": text}),
    ):
        error = refused(ask(serving, path, {"model": "tiny", **told}), 400)
        assert error["code"] == "context_length_exceeded"
        assert error["param"] in told and f"{len(text)} bytes" in error["message"]


def test_a_request_cannot_name_a_file_of_the_servers(serving: Serving, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    for name in ("pipe", "none"):
        for spec in (f"learned:{tmp_path / name}", f'margin:0.5 & learned : "{tmp_path / name}"'):
            asked = {**HELLO, "collm": {"mode": "standalone", "criterion": spec}}
            error = refused(ask(serving, CHAT, asked), 400)
            assert (error["param"], error["code"]) == ("collm.criterion", "invalid_value")
            assert "margin:0.5" in error["message"] and str(tmp_path) not in error["message"]
    own = replace(GREEDY, mode="standalone", criterion="learned:mine")
    asked = ChatCompletionRequest.model_validate({**HELLO, "collm": {"criterion": "learned:mine"}})
    assert generations(asked, own, ("standalone",), 9, 1)[0].criterion == "learned:mine"


def test_only_json_is_read(serving: Serving) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        headers = {"Content-Type": kind}
        refused(ask(serving, CHAT, json.dumps(HELLO).encode(), headers=headers), 415)


def test_what_is_not_there(serving: Serving) -> None:
    error = refused(ask(serving, CHAT, {**HELLO, "model": "gpt-9"}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'tiny'" in error["message"]
    assert refused(ask(serving, "/v1/models/gpt-9"), 404)["code"] == "model_not_found"
    refused(ask(serving, "/v1/embeddings", {"input": "x"}), 404)
    refused(ask(serving, "/docs"), 404)
    refused(ask(serving, CHAT), 405)
    refused(ask(serving, "/v1/models", {}, method="DELETE"), 405)


@pytest.fixture
def keyed(serving: Serving, tmp_path: Path) -> tuple[Serving, Path]:
    path = tmp_path / "keys"
    path.write_text(f"# ours\n{KEY}\nann sk-ffffffffffffffff 2020-01-31\n")
    path.chmod(0o600)
    return replace(serving, keys=TokenFile(path, bare=True)), path


def test_a_key_is_needed_where_answers_and_figures_are(keyed: tuple[Serving, Path]) -> None:
    serving, _ = keyed
    for path in ("/v1/models", "/metrics", "/collm/status", "/v1/nothing"):
        assert refused(ask(serving, path), 401)["code"] == "invalid_api_key"
    for wrong in ("", "Bearer", "Bearer sk-wrong", f"Basic {KEY}", "Bearer sk-ffffffffffffffff"):
        response = ask(serving, CHAT, HELLO, headers={"Authorization": wrong})
        refused(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/healthz", "/readyz", "/openapi.json"):
        assert ask(serving, path).status_code == 200
    given = {"Authorization": f"Bearer {KEY}"}
    assert ask(serving, CHAT, HELLO, headers=given).status_code == 200
    assert ask(serving, "/metrics", headers=given).status_code == 200
    document = ask(serving, "/openapi.json").json()
    assert document["paths"][CHAT]["post"]["security"] == [{"key": []}]


def test_one_keys_text_is_nothing_to_another(keyed: tuple[Serving, Path]) -> None:
    """Or cached_tokens would tell what others have asked."""
    serving, path = keyed
    ours, theirs = "sk-ours-is-a-key-of-16", "sk-theirs-is-a-key-of-16"
    path.write_text(f"{ours}\n{theirs}\n")
    keyed_anew = replace(serving, keys=TokenFile(path, bare=True))
    cached = []
    for key in (ours, theirs, ours):
        given = {"Authorization": f"Bearer {key}"}
        usage = ask(keyed_anew, CHAT, HELLO, headers=given).json()["usage"]
        cached.append(usage["prompt_tokens_details"]["cached_tokens"])
    assert cached[0] == cached[1] == 0 < cached[2]


def test_keys_are_read_again_when_the_file_changes(
    keyed: tuple[Serving, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    serving, path = keyed
    monkeypatch.setattr("collm.link.credentials._LOOK_SECONDS", 0.0)
    path.write_text("sk-another-key-of-16\n")
    os.utime(path, ns=(1, 1))
    refused(ask(serving, "/v1/models", headers={"Authorization": f"Bearer {KEY}"}), 401)
    given = {"Authorization": "Bearer sk-another-key-of-16"}
    assert ask(serving, "/v1/models", headers=given).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000",
                                  "LOCALHOST.", "127.0.0.9", "my.box:80"])  # fmt: skip
def test_known_names_are_served(serving: Serving, host: str) -> None:
    known = replace(serving, hosts=allowed_hosts("127.0.0.1", ["my.box"]))
    assert ask(known, "/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8000", "", "10.0.0.1",
                                  "localhost@evil.example", "[::2]"])  # fmt: skip
def test_a_name_pointed_at_loopback_is_refused(serving: Serving, host: str) -> None:
    known = replace(serving, hosts=allowed_hosts("127.0.0.1", ["my.box"]))
    error = refused(ask(known, "/v1/models", headers={"Host": host}), 403)
    assert "--allow-host" in error["message"]


@pytest.mark.parametrize("host", ["[", "[::2", "a]b", "\xff", "a b:c"])
def test_a_name_that_is_none_is_no_failure(serving: Serving, host: str) -> None:
    headers = {"Host": host.encode("latin-1")}
    assert ask(serving, "/v1/models", headers=headers).status_code == 200
    refused(ask(serving, "/v1/[", headers=headers), 404)
    refused(ask(serving, "/v1/models", {}, headers=headers), 405)
    known = replace(serving, hosts=allowed_hosts("127.0.0.1", []))
    refused(ask(known, "/v1/models", headers=headers), 403)


def test_other_machines_may_name_a_server_as_they_like_unless_told() -> None:
    assert allowed_hosts("0.0.0.0", []) is None
    assert "my.box" in (allowed_hosts("0.0.0.0", ["My.Box:8000"]) or ())


def test_pages_of_other_sites_are_kept_out_unless_let_in(serving: Serving) -> None:
    theirs = {"Origin": "https://evil.example"}
    for origin in ("https://evil.example", "null", "http://localhost:3000", "http://[", "//["):
        refused(ask(serving, CHAT, HELLO, headers={"Origin": origin}), 403)
    assert "access-control-allow-origin" not in ask(serving, "/v1/models", headers=theirs).headers
    own = {"Origin": "http://localhost:8000"}
    assert ask(serving, CHAT, HELLO, headers=own).status_code == 200
    let = replace(serving, origins=("https://chat.example",))
    given = {"Origin": "https://chat.example"}
    answered = ask(let, CHAT, HELLO, headers=given)
    assert answered.status_code == 200
    assert answered.headers["access-control-allow-origin"] == "https://chat.example"
    asked = {**given, "Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "authorization, content-type"}  # fmt: skip
    assert ask(let, CHAT, method="OPTIONS", headers=asked).status_code == 200
    refused(ask(let, CHAT, HELLO, headers=theirs), 403)
    assert app_of(let) is not app_of(serving)
