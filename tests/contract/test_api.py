"""The public Python API, against a cloud process of a tiny random model."""

from __future__ import annotations

import asyncio
import doctest
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import random_artifact

import collm
from collm import (
    Answer,
    Cloud,
    CollmError,
    Done,
    Edge,
    Options,
    Preview,
    PromptError,
    Token,
    UsageError,
)

ASK = {"max_tokens": 24, "ignore_eos": True}
PROMPT = "the edge answers the easy tokens"
DOCUMENTED = ("asking", "cloud", "conversation", "edge", "events", "streams")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api") / "tiny"
    random_artifact(folder)
    return folder


@pytest.fixture(scope="module")
def cloud(artifact: Path) -> Iterator[Cloud]:
    with Cloud(artifact, threads=1) as cloud:
        yield cloud


@pytest.fixture(scope="module")
def edge(artifact: Path, cloud: Cloud) -> Iterator[Edge]:
    with Edge(artifact, cloud=cloud, threads=1) as edge:
        yield edge


@pytest.fixture(scope="module")
def whole(artifact: Path) -> Answer:
    """What the full model says."""
    with Edge(artifact, placement=4, threads=1) as edge:
        return edge.ask(PROMPT, **ASK)


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def test_the_public_names_are_these() -> None:
    assert collm.__all__ == [
        "Answer", "ArtifactError", "AsyncStream", "Cloud", "CollmError", "Conversation", "Done",
        "Edge", "Event", "LinkError", "LinkTimeout", "Options", "PlacementError", "Preview",
        "Probe", "PromptError", "Refused", "Stream", "Summary", "Token", "Unreachable",
        "UsageError", "WayChanged", "Withdrawn",
    ]  # fmt: skip
    stub = (Path(collm.__file__).with_suffix(".pyi")).read_text()
    assert sorted(line.split()[-1] for line in stub.splitlines() if " as " in line) == collm.__all__
    for name in collm.__all__:
        assert getattr(collm, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_that"):
        collm.nothing_like_that  # noqa: B018


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, collm; print(sorted({'numpy', 'onnxruntime', 'grpc'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_examples_in_docstrings_run(name: str, artifact: Path, edge: Edge) -> None:
    module = importlib.import_module(f"collm.api.{name}")
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    names = {"artifact": artifact, "edge": edge, "Token": Token, "asyncio": asyncio}
    said: list[str] = []
    for test in doctest.DocTestFinder().find(module, globs=names):
        runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)
    assert runner.tries or ">>>" not in Path(str(module.__file__)).read_text()


def test_a_stream_adds_up_to_the_answer_and_to_the_full_models(edge: Edge, whole: Answer) -> None:
    events = list(edge.stream(PROMPT, **ASK))
    done = events[-1]
    assert isinstance(done, Done)
    assert "".join(event.text for event in events) == done.answer.text == whole.text
    tokens = tuple(event for event in events if isinstance(event, Token))
    assert tokens == done.answer.tokens
    assert [token.index for token in tokens] == list(range(24))
    assert done.answer.summary.rounds > 0
    assert sum(done.answer.summary.sources.values()) == 24


def test_text_held_back_for_a_stop_string_comes_with_done(edge: Edge, whole: Answer) -> None:
    """A stop string that begins with the last character, and never comes."""
    stop = whole.text[-1] + "never"
    events = list(edge.stream(PROMPT, **ASK, stop=stop))
    done = events[-1]
    assert isinstance(done, Done)
    assert done.text.endswith(whole.text[-1])
    assert "".join(event.text for event in events) == whole.text
    assert len(done.answer.tokens) == 24


def test_a_stop_string_ends_the_answer(edge: Edge, whole: Answer) -> None:
    stop = whole.text[5:8]
    answer = edge.ask(PROMPT, **ASK, stop=[stop])
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert answer.finish_reason == "stop"


def test_an_answer_obeys_a_schema_or_an_expression(edge: Edge) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["blue", "red"]}, "bright": {"type": "boolean"}},
        "required": ["colour", "bright"],
        "additionalProperties": False,
    }
    made = json.loads(edge.ask(PROMPT, schema=schema, temperature=1.0, seed=3).text)
    assert made["colour"] in ("blue", "red") and made["bright"] in (True, False)
    assert re.fullmatch("(ab|cd){3}", edge.ask(PROMPT, regex="(ab|cd){3}").text)
    token = edge.ask(PROMPT, max_tokens=1, ignore_eos=True, top_logprobs=3).tokens[0]
    assert len(token.alternatives) == 3
    assert token.logprob is not None and token.logprob <= 0
    with pytest.raises(PromptError, match="one of them only"):
        edge.ask(PROMPT, schema=True, regex="a")
    with pytest.raises(PromptError, match="expected a JSON schema as a mapping"):
        edge.ask(PROMPT, schema="object")  # type: ignore[arg-type]


def test_in_asyncio_answers_run_side_by_side(edge: Edge, whole: Answer) -> None:
    async def ask() -> list[Answer]:
        return await asyncio.gather(*(edge.aask(PROMPT, **ASK) for _ in range(4)))

    assert [answer.text for answer in asyncio.run(ask())] == [whole.text] * 4


def test_who_stops_reading_stops_the_answer(edge: Edge) -> None:
    long = {"max_tokens": 400, "ignore_eos": True}
    for event in edge.stream(PROMPT, **long):
        assert isinstance(event, Token)
        break
    assert eventually(lambda: edge.status.active == 0)

    with edge.stream(PROMPT, **long) as stream:
        next(stream)
    assert list(stream) == []
    assert stream.answer is None

    async def cancelled() -> None:
        async def read() -> None:
            async for _ in edge.astream(PROMPT, **long):
                started.set()

        started = asyncio.Event()
        task = asyncio.create_task(read())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert eventually(lambda: edge.status.active == 0)


def test_an_edge_that_is_closed_says_so_to_who_reads(artifact: Path) -> None:
    edge = Edge(artifact, placement=4, threads=1)
    stream = edge.stream(PROMPT, max_tokens=400, ignore_eos=True)
    next(stream)
    edge.close()
    edge.close()
    with pytest.raises(CollmError, match="the edge was closed"):
        list(stream)


def test_a_conversation_keeps_whole_turns_and_what_was_read(edge: Edge) -> None:
    chat = edge.chat("the cloud finishes the hard ones", **ASK)
    first = chat.say(PROMPT)
    kept = list(chat.messages)
    assert kept[1:] == [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": first.text},
    ]
    second = asyncio.run(chat.asay("token by token"))
    assert len(chat.messages) == 5
    assert second.prompt_tokens > first.prompt_tokens
    assert second.summary.reused_tokens > 0
    fresh = edge.ask(chat.messages[:-1], **ASK)
    assert fresh.text == second.text


def test_a_turn_that_is_broken_off_leaves_the_history_as_it_was(edge: Edge) -> None:
    chat = edge.chat(**ASK)
    chat.say(PROMPT)
    kept = list(chat.messages)
    turn = chat.stream("token by token")
    next(turn)
    with pytest.raises(UsageError, match="still answering"):
        chat.say("and now?")
    turn.close()
    assert chat.messages == kept
    chat.say("token by token")
    assert len(chat.messages) == 4


def test_a_loop_that_is_left_frees_the_turn_at_once(edge: Edge) -> None:
    """In asyncio, too, where nothing else has run until the next turn begins."""

    async def talk() -> str:
        async for _ in chat.astream(PROMPT, max_tokens=400):
            break
        task = asyncio.create_task(chat.asay(PROMPT, max_tokens=400))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async for event in chat.astream(PROMPT):
            if isinstance(event, Done):
                break
        async with chat.astream("token by token") as stream:
            with pytest.raises(UsageError, match="still answering"):
                await chat.asay("and now?")
            await anext(stream)
        return (await chat.asay("token by token")).text

    chat = edge.chat(**ASK)
    with pytest.raises(PromptError):
        chat.say(PROMPT, temperature=-1.0)
    for _ in chat.stream(PROMPT):
        break
    said = asyncio.run(talk())
    assert [message["content"] for message in chat.messages[::2]] == [PROMPT, "token by token"]
    assert chat.messages[-1]["content"] == said


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"stop": 5}, "stop 5: expected a string, or a list of strings"),
        ({"stop": ["a", 1]}, "stop 1: expected a string, or a list of strings"),
        ({"max_tokens": "5"}, "max_tokens '5': expected a whole number"),
        ({"seed": 1.5}, "seed 1.5: expected a whole number"),
        ({"batch": True}, "batch True: expected a whole number"),
        ({"temperature": "a"}, "temperature 'a': expected a number"),
        ({"ahead": "x"}, "ahead 'x': expected a number"),
        ({"deadline": "soon"}, "deadline 'soon': expected a number"),
        ({"regex": 5}, "regex 5: expected a string"),
        ({"criterion": 5}, "criterion 5: expected a string"),
        ({"lookup": "x"}, "lookup 'x': expected True or False"),
        ({"refinement": {}}, "refinement {}: expected a Refinement"),
    ],
    ids=str,
)
def test_an_option_of_another_kind_is_told_in_a_line(
    options: dict[str, object], line: str, edge: Edge
) -> None:
    with pytest.raises(PromptError) as told:
        edge.stream(PROMPT, **options)  # type: ignore[misc]
    assert str(told.value) == line


@pytest.mark.parametrize("prompt", [5, None, b"bytes", {"role": "user", "content": "x"}], ids=str)
def test_a_prompt_of_another_kind_is_told_in_a_line(prompt: object, edge: Edge) -> None:
    with pytest.raises(PromptError, match=r"^a prompt .*: expected a string, or a list of "):
        edge.ask(prompt)  # type: ignore[arg-type]


def test_none_is_the_default_of_every_option(edge: Edge, whole: Answer) -> None:
    none: dict[str, Any] = dict.fromkeys(Options.__annotations__)
    assert edge.ask(PROMPT, **(none | ASK)).text == whole.text


def test_numbers_of_numpy_are_numbers(edge: Edge, whole: Answer) -> None:
    one = {"max_tokens": np.int64(24), "temperature": np.float32(0), "top_k": np.uint8(3)}
    assert edge.ask(PROMPT, ignore_eos=True, **one).text == whole.text


def test_mistakes_are_told_in_a_line(artifact: Path, edge: Edge) -> None:
    with pytest.raises(UsageError, match="unknown option max_token: expected some of ahead, "):
        edge.ask(PROMPT, max_token=3)  # type: ignore[call-arg]
    with pytest.raises(PromptError, match="expected a mapping with role and content"):
        edge.ask([{"role": "user"}])
    with pytest.raises(PromptError, match="the conversation is empty"):
        edge.ask([])
    with pytest.raises(PromptError, match="temperature"):
        edge.stream(PROMPT, temperature=-1.0)
    with pytest.raises(PromptError, match="there is no cloud"):
        Edge(artifact, mode="threshold", placement=2)
    with pytest.raises(UsageError, match="go with a cloud given as HOST:PORT"):
        Edge(artifact, cloud="spawn", token="secret")
    with pytest.raises(UsageError, match="travel unencrypted"):
        Cloud.at("192.0.2.1:50051", token="sixteen-letters-at-least")
    with pytest.raises(UsageError, match="is not an address"):
        Cloud.at("nowhere")
    with pytest.raises(CollmError, match="takes connections from other machines"):
        Cloud(artifact, listen="0.0.0.0:0", threads=1)


def test_without_a_cloud_all_of_the_model_is_here_or_the_exits_answer(
    artifact: Path, whole: Answer
) -> None:
    with Edge(artifact, threads=1) as edge:
        assert edge.placement == 4
        assert edge.ask(PROMPT, **ASK).text == whole.text
    with Edge(artifact, placement=2, threads=1) as edge:
        assert edge.modes == ("standalone",)
        assert set(edge.ask(PROMPT, **ASK).summary.sources) <= {"exit@1", "exit@2"}


def test_a_cloud_is_a_process_that_ends_with_it(artifact: Path) -> None:
    cloud = Cloud(artifact, threads=1)
    assert cloud.pid is not None
    assert cloud.probe(seconds=0.0).layers == 4
    os.kill(cloud.pid, 0)
    cloud.close()
    cloud.close()
    with pytest.raises(ProcessLookupError):
        os.kill(cloud.pid, 0)
    assert Cloud.at(cloud.address).pid is None


def test_a_cloud_that_dies_in_mid_answer_is_previewed_over(artifact: Path, whole: Answer) -> None:
    """SIGKILL after some tokens, and a new process at the same address once a preview was shown."""
    first = Cloud(artifact, threads=1)
    second: Cloud | None = None
    assert first.pid is not None
    events = []
    try:
        with Edge(artifact, cloud=first, threads=1) as edge:
            for event in edge.stream(PROMPT, max_tokens=400, ignore_eos=True):
                events.append(event)
                if len(events) == 3:
                    os.kill(first.pid, signal.SIGKILL)
                if isinstance(event, Preview) and second is None:
                    second = Cloud(artifact, listen=first.address, threads=1)
    finally:
        first.close()
        if second is not None:
            second.close()
    done = events[-1]
    assert isinstance(done, Done)
    previews = [event for event in events if isinstance(event, Preview)]
    assert previews
    assert all(event.text == "" and event.preview is not None for event in previews)
    assert done.answer.text == "".join(event.text for event in events)
    assert done.answer.text.startswith(whole.text)
    assert done.answer.summary.provisional == 0
    assert done.answer.summary.reconnects >= 1
