"""What the server answers to what it is asked: every parameter, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel
from tests.openai_server import CHAT, HELLO, RESPONSES, TEXT, ask, events, serving_of
from tests.support import random_artifact

from collm.config import Generation
from collm.serve.openai.responses_shapes import ResponseEvent, TextResponse
from collm.serve.openai.serving import Serving
from collm.serve.openai.shapes import (
    ChatChunk,
    ChatCompletion,
    ModelInfo,
    ModelList,
    Status,
    TextChunk,
    TextCompletion,
)

PROMPT: dict[str, Any] = {
    "model": "tiny",
    "prompt": "the edge answers",
    "max_tokens": 8,
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving_of(random_artifact(tmp_path_factory.mktemp("tiny") / "a")) as made:
        yield made


def good(serving: Serving, path: str, body: dict[str, Any], shape: type[BaseModel]) -> Any:
    """A response that is as its shape says."""
    response = ask(serving, path, body)
    assert response.status_code == 200, response.text
    shape.model_validate(response.json(), strict=True)
    return response.json()


def streamed(serving: Serving, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Chunks that are as their shape says."""
    told = events(ask(serving, path, {**body, "stream": True}))
    shape = ChatChunk if path == CHAT else TextChunk
    for one in told:
        shape.model_validate(one, strict=True)
    return told


def content(chunks: list[dict[str, Any]], index: int = 0) -> str:
    entries = [entry for one in chunks for entry in one["choices"] if entry["index"] == index]
    return "".join(
        entry["text"] if "text" in entry else entry["delta"].get("content", "") for entry in entries
    )


def test_a_chat_is_answered_as_the_engine_answers_it(serving: Serving) -> None:
    engine = serving.engine
    ids = engine.tokenizer.encode_chat(HELLO["messages"])
    reply = engine.start(ids, Generation(max_tokens=8, ignore_eos=True))
    text = "".join(piece.text for piece in reply)
    made = good(serving, CHAT, HELLO, ChatCompletion)
    assert made["choices"][0]["message"] == {
        "role": "assistant", "content": text, "refusal": None
    }  # fmt: skip
    assert made["choices"][0]["finish_reason"] == "length"
    assert made["usage"]["prompt_tokens"] == len(ids)
    assert made["usage"]["completion_tokens"] == 8
    assert made["system_fingerprint"].startswith("fp_")
    assert made["collm"]["summary"]["sources"] == {"edge": 8}


def test_a_stream_says_the_same_piece_by_piece(serving: Serving) -> None:
    whole = good(serving, CHAT, HELLO, ChatCompletion)
    asked = {**HELLO, "stream_options": {"include_usage": True}}
    chunks = streamed(serving, CHAT, asked)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert content(chunks) == whole["choices"][0]["message"]["content"]
    assert len({one["id"] for one in chunks}) == 1
    assert [one["collm"]["index"] for one in chunks[1:9]] == list(range(8))
    assert {one["collm"]["source"] for one in chunks[1:9]} == {"edge"}
    assert all(0 < one["collm"]["confidence"] <= 1 for one in chunks[1:9])
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert chunks[-2]["collm"]["summary"]["sources"] == {"edge": 8}
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 8
    assert all(one["usage"] is None for one in chunks[:-1])
    assert all("usage" not in one for one in streamed(serving, CHAT, HELLO))


def test_the_next_turn_reuses_the_last_ones_cache(serving: Serving) -> None:
    first = good(serving, CHAT, {**HELLO, "max_tokens": 4}, ChatCompletion)
    answer = first["choices"][0]["message"]  # sent back as it came
    turns = [*HELLO["messages"], answer, {"role": "user", "content": "and the cloud"}]
    second = good(serving, CHAT, {**HELLO, "messages": turns}, ChatCompletion)
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= first["usage"]["prompt_tokens"] - 1
    assert second["collm"]["summary"]["reused_tokens"] == cached


def test_parts_and_developers_read_as_one_text_and_system(serving: Serving) -> None:
    plain = [{"role": "system", "content": "be\nshort"}, {"role": "user", "content": "hello"}]
    parts = [
        {
            "role": "developer",
            "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "short"}],
        },
        {"role": "user", "content": [{"type": "text", "text": "hello"}], "name": "ann"},
    ]
    texts = {
        good(serving, CHAT, {**HELLO, "messages": one}, ChatCompletion)["choices"][0]["message"][
            "content"
        ]
        for one in (plain, parts)
    }
    assert len(texts) == 1


def test_several_answers_have_seeds_one_after_the_other(serving: Serving) -> None:
    asked = {**HELLO, "temperature": 1.5, "seed": 7}
    three = good(serving, CHAT, {**asked, "n": 3}, ChatCompletion)
    texts = [choice["message"]["content"] for choice in three["choices"]]
    alone = [
        good(serving, CHAT, {**asked, "seed": 7 + i}, ChatCompletion)["choices"][0]["message"][
            "content"
        ]
        for i in range(3)
    ]
    assert texts == alone and len(set(texts)) == 3
    assert three["usage"]["completion_tokens"] == 24
    assert len(three["collm"]["summaries"]) == 3
    chunks = streamed(serving, CHAT, {**asked, "n": 3})
    assert [content(chunks, i) for i in range(3)] == texts


def test_a_seed_that_was_chosen_is_told_and_can_be_used_again(serving: Serving) -> None:
    asked = {**HELLO, "temperature": 1.5}
    first = good(serving, CHAT, asked, ChatCompletion)
    again = good(serving, CHAT, {**asked, "seed": first["collm"]["seed"]}, ChatCompletion)
    assert again["choices"][0]["message"] == first["choices"][0]["message"]
    assert good(serving, CHAT, {**asked, "seed": -1}, ChatCompletion)["collm"]["seed"] == 2**64 - 1
    assert "seed" not in good(serving, CHAT, HELLO, ChatCompletion)["collm"]  # greedy needs none


def test_sampling_parameters_reach_the_sampler(serving: Serving) -> None:
    greedy = good(serving, CHAT, HELLO, ChatCompletion)["choices"][0]["message"]
    hot = {**HELLO, "temperature": 2, "seed": 3}
    assert good(serving, CHAT, hot, ChatCompletion)["choices"][0]["message"] != greedy
    for alike in ({"top_k": 1}, {"top_p": 0}, {"temperature": 0}, {"temperature": 1e-9}):
        assert (
            good(serving, CHAT, {**hot, **alike}, ChatCompletion)["choices"][0]["message"] == greedy
        )
    long = {**HELLO, "max_tokens": 64}
    plain = good(serving, CHAT, long, ChatCompletion)["choices"][0]["message"]
    other = good(serving, CHAT, {**long, "repetition_penalty": 5}, ChatCompletion)
    assert other["choices"][0]["message"] != plain


@pytest.mark.parametrize("many", [False, True])
def test_a_stop_string_ends_an_answer_before_it(serving: Serving, many: bool) -> None:
    text = good(serving, TEXT, PROMPT, TextCompletion)["choices"][0]["text"]
    stop = text[3:5]
    asked = {**PROMPT, "stop": ["never there", stop] if many else stop}
    made = good(serving, TEXT, asked, TextCompletion)["choices"][0]
    assert (made["text"], made["finish_reason"]) == (text[: text.index(stop)], "stop")
    assert content(streamed(serving, TEXT, asked)) == made["text"]


def test_logprobs_are_those_of_the_chosen_tokens(serving: Serving) -> None:
    made = good(serving, CHAT, {**HELLO, "logprobs": True}, ChatCompletion)["choices"][0]
    entries = made["logprobs"]["content"]
    assert len(entries) == 8
    said = b"".join(bytes(entry["bytes"]) for entry in entries).decode(errors="replace")
    assert said == made["message"]["content"]
    assert all(entry["logprob"] <= 0 for entry in entries)
    chunks = streamed(serving, CHAT, {**HELLO, "logprobs": True})
    told = [one["choices"][0]["logprobs"] for one in chunks]
    assert [one["content"][0] for one in told if one] == entries


def test_plain_completions_take_texts_and_ids_one_or_several(serving: Serving) -> None:
    tokenizer = serving.engine.tokenizer
    texts = ["the edge answers", "and the cloud"]
    ids = [tokenizer.encode(text) for text in texts]
    alone = [
        good(serving, TEXT, {**PROMPT, "prompt": one}, TextCompletion)["choices"][0]["text"]
        for one in texts
    ]
    for prompt, expected in (
        (ids[0], alone[:1]),
        (texts, alone),
        (ids, alone),
    ):
        made = good(serving, TEXT, {**PROMPT, "prompt": prompt}, TextCompletion)
        assert [choice["text"] for choice in made["choices"]] == expected
    assert made["usage"]["prompt_tokens"] == sum(map(len, ids))
    both = streamed(serving, TEXT, {**PROMPT, "prompt": texts})
    assert [content(both, i) for i in range(2)] == alone


def test_a_plain_completion_can_repeat_its_prompt_and_tell_logprobs(serving: Serving) -> None:
    plain = good(serving, TEXT, PROMPT, TextCompletion)["choices"][0]["text"]
    echoed = good(serving, TEXT, {**PROMPT, "echo": True}, TextCompletion)["choices"][0]["text"]
    assert echoed == PROMPT["prompt"] + plain
    assert content(streamed(serving, TEXT, {**PROMPT, "echo": True})) == echoed
    told = good(serving, TEXT, {**PROMPT, "logprobs": 0}, TextCompletion)["choices"][0]["logprobs"]
    assert len(told["tokens"]) == len(told["token_logprobs"]) == len(told["text_offset"]) == 8
    assert told["text_offset"][0] == 0
    del PROMPT["max_tokens"]
    try:
        assert good(serving, TEXT, PROMPT, TextCompletion)["usage"]["completion_tokens"] == 16
    finally:
        PROMPT["max_tokens"] = 8


def test_an_answer_is_as_long_as_the_context_lets_it_be(serving: Serving) -> None:
    context = serving.engine.artifact.architecture.context_length
    asked = {**HELLO, "max_tokens": None}
    made = good(serving, CHAT, asked, ChatCompletion)["usage"]
    assert made["total_tokens"] == context
    newer = {**asked, "max_completion_tokens": 3}
    assert good(serving, CHAT, newer, ChatCompletion)["usage"]["completion_tokens"] == 3


def test_what_changes_nothing_is_accepted(serving: Serving) -> None:
    harmless = {
        "user": "ann", "store": False, "metadata": {"a": "b"}, "service_tier": "auto",
        "parallel_tool_calls": True, "frequency_penalty": 0, "presence_penalty": 0.0,
        "logit_bias": {}, "tools": [], "tool_choice": "none", "functions": [],
        "response_format": {"type": "text"}, "modalities": ["text"], "n": 1, "logprobs": False,
        "top_logprobs": 0, "stream_options": None, "prompt_cache_key": "k", "min_p": 0,
    }  # fmt: skip
    plain = good(serving, CHAT, HELLO, ChatCompletion)["choices"]
    assert good(serving, CHAT, {**HELLO, **harmless}, ChatCompletion)["choices"] == plain
    tools = [{"type": "function", "function": {"name": "f"}}]
    asked = {**HELLO, "tools": tools, "tool_choice": "none"}
    assert good(serving, CHAT, asked, ChatCompletion)["choices"] == plain


def test_an_answer_can_choose_how_it_is_made(serving: Serving) -> None:
    made = good(serving, CHAT, {**HELLO, "collm": {"mode": "standalone"}}, ChatCompletion)
    assert made["collm"]["summary"]["mode"] == "standalone"
    asked = {**HELLO, "collm": {"mode": "standalone", "threshold": 0.0}}
    assert "exit@1" in good(serving, CHAT, asked, ChatCompletion)["collm"]["summary"]["sources"]


def test_models_and_status(serving: Serving) -> None:
    listed = ask(serving, "/v1/models").json()
    ModelList.model_validate(listed, strict=True)
    assert [one["id"] for one in listed["data"]] == ["tiny"]
    one = ask(serving, "/v1/models/tiny").json()
    ModelInfo.model_validate(one, strict=True)
    assert one == listed["data"][0]
    status = ask(serving, "/collm/status").json()
    Status.model_validate(status, strict=True)
    assert status["layers"] == status["placement"] == 4
    assert [tier["role"] for tier in status["tiers"]] == ["device"]
    assert ask(serving, "/healthz").status_code == ask(serving, "/readyz").status_code == 200
    counted = ask(serving, "/metrics").text
    assert 'collm_http_requests_total{route="/v1/chat/completions",status="200"}' in counted


ASKED: dict[str, Any] = {"model": "tiny", "input": "the edge answers", "ignore_eos": True}


def test_a_response_says_what_a_chat_does(serving: Serving) -> None:
    chat = good(serving, CHAT, HELLO, ChatCompletion)
    text = chat["choices"][0]["message"]["content"]
    asked = {**ASKED, "max_output_tokens": 8}
    made = good(serving, RESPONSES, asked, TextResponse)
    assert made["output"][0]["content"][0]["text"] == text
    assert (made["status"], made["incomplete_details"]) == (
        "incomplete", {"reason": "max_output_tokens"}
    )  # fmt: skip
    assert made["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert made["collm"]["summary"]["sources"] == {"edge": 8}
    turns = [{"role": "user", "content": [{"type": "input_text", "text": "the edge answers"}]}]
    again = good(serving, RESPONSES, {**asked, "input": turns}, TextResponse)
    assert again["output"][0]["content"] == made["output"][0]["content"]
    # The answer is sent back as it came, for the next turn.
    longer = [*turns, *made["output"], {"role": "user", "content": "and the cloud"}]
    told = {**asked, "input": longer, "instructions": "be short"}
    system = {"role": "system", "content": "be short"}
    answer = {"role": "assistant", "content": text}
    last = {"role": "user", "content": "and the cloud"}
    same = {**HELLO, "messages": [system, *HELLO["messages"], answer, last]}
    assert (
        good(serving, RESPONSES, told, TextResponse)["output"][0]["content"][0]["text"]
        == good(serving, CHAT, same, ChatCompletion)["choices"][0]["message"]["content"]
    )


def test_a_response_is_streamed_as_named_events(serving: Serving) -> None:
    asked = {**ASKED, "max_output_tokens": 4}
    whole = good(serving, RESPONSES, asked, TextResponse)
    response = ask(serving, RESPONSES, {**asked, "stream": True})
    told = []
    for part in response.text.strip().split("\n\n"):
        name, _, data = part.partition("\ndata: ")
        told.append(json.loads(data))
        ResponseEvent.model_validate(told[-1], strict=True)
        assert name == f"event: {told[-1]['type']}"
    assert [one["sequence_number"] for one in told] == list(range(len(told)))
    text = whole["output"][0]["content"][0]["text"]
    deltas = [one for one in told if one["type"] == "response.output_text.delta"]
    assert "".join(one["delta"] for one in deltas) == text
    assert [one["collm"]["index"] for one in deltas[:4]] == [0, 1, 2, 3]
    assert [one["type"].removeprefix("response.") for one in told if one not in deltas] == [
        "created", "in_progress", "output_item.added", "content_part.added",
        "output_text.done", "content_part.done", "output_item.done", "incomplete",
    ]  # fmt: skip
    assert told[-1]["response"]["usage"] == {
        **whole["usage"],
        "input_tokens_details": told[-1]["response"]["usage"]["input_tokens_details"],
    }


def test_a_response_can_be_held_to_a_schema(serving: Serving) -> None:
    form = {"type": "json_schema", "name": "sky", "schema": SCHEMA, "strict": True}
    asked = {**ASKED, "max_output_tokens": 24, "text": {"format": form}, "ignore_eos": False}
    made = good(serving, RESPONSES, asked, TextResponse)
    assert made["output"][0]["content"][0]["text"].startswith('{"sky": "')
    assert made["text"]["format"]["schema"] == SCHEMA


SCHEMA = {
    "type": "object",
    "properties": {"sky": {"enum": ["blue", "grey"]}, "height": {"type": "integer"}},
    "required": ["sky", "height"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_can_be_held_to_a_json_schema(serving: Serving, temperature: float) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "sky", "schema": SCHEMA, "strict": True}}
    asked = {
        **HELLO, "temperature": temperature, "seed": 1, "response_format": form,
        "max_tokens": 120, "ignore_eos": False,
    }  # fmt: skip
    made = good(serving, CHAT, asked, ChatCompletion)["choices"][0]
    assert content(streamed(serving, CHAT, asked)) == made["message"]["content"]
    if made["finish_reason"] == "stop":
        said = json.loads(made["message"]["content"])
        assert set(said) == {"sky", "height"} and isinstance(said["height"], int)
    else:  # a random model may count for ever
        assert made["message"]["content"].startswith('{"sky": "')


def test_an_answer_can_be_held_to_be_an_object(serving: Serving) -> None:
    for path, body, shape in ((CHAT, HELLO, ChatCompletion), (TEXT, PROMPT, TextCompletion)):
        asked = {**body, "response_format": {"type": "json_object"}}
        made = good(serving, path, asked, shape)["choices"][0]
        text = made["text"] if path == TEXT else made["message"]["content"]
        assert text.startswith("{")


def test_what_else_was_likely_is_told(serving: Serving) -> None:
    asked = {**HELLO, "logprobs": True, "top_logprobs": 3}
    entries = good(serving, CHAT, asked, ChatCompletion)["choices"][0]["logprobs"]["content"]
    for entry in entries:
        top = entry["top_logprobs"]
        assert [one["logprob"] for one in top] == sorted((o["logprob"] for o in top), reverse=True)
        assert len(top) == 3
        assert top[0]["token"] == entry["token"]  # greedy
        assert top[0]["logprob"] == pytest.approx(entry["logprob"], abs=1e-5)
    told = good(serving, TEXT, {**PROMPT, "logprobs": 2}, TextCompletion)["choices"][0]["logprobs"]
    assert [max(one, key=one.__getitem__) for one in told["top_logprobs"]] == told["tokens"]
    assert all(len(one) == 2 for one in told["top_logprobs"])
