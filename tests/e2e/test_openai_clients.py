"""Clients as people have them, unmodified, against one running `collm serve` with a cloud."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel
from tests.e2e.conftest import collm

pytestmark = pytest.mark.e2e

PROMPT = "Why is the sky blue?"
TOKENS = 16
KEY = "sk-0123456789abcdef"
CLIENTS = Path(__file__).parent / "clients"
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": PROMPT}],
    "max_tokens": TOKENS,
    "temperature": 0,
}


@dataclass(frozen=True)
class Server:
    url: str
    model: str = "SmolLM2-135M-Instruct"

    @property
    def api(self) -> str:
        return f"{self.url}/v1"


@pytest.fixture(scope="module")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{KEY}  # the clients'\n")
    keys.chmod(0o600)
    words = ["serve", smollm2, "--cloud", "spawn", "--placement", 15, "--port", 0]
    words += ["--api-key-file", keys, "--parallel", 4, "--queue", 2, "--threads", 1]
    with subprocess.Popen(
        [sys.executable, "-m", "collm", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        watchdog = threading.Timer(300, process.kill)
        watchdog.start()
        try:
            line = process.stdout.readline()
            assert line.startswith("serving layers 0 to 15 of SmolLM2"), process.stderr.read()
            yield Server(line.split(" on ")[1].split()[0])
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0, process.stderr.read()
            assert "Traceback" not in process.stderr.read()
        finally:
            watchdog.cancel()
            process.kill()


@pytest.fixture(scope="module")
def text(smollm2: Path) -> str:
    """What the whole model says to the prompt."""
    ran = collm("run", smollm2, PROMPT, "--placement", 30, "--max-tokens", TOKENS, "--json")
    return str(ran.lines()[0]["text"])


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.api, api_key=KEY, max_retries=0) as made:
        yield made


def test_the_openai_sdk_gets_the_whole_models_text(
    server: Server, client: openai.OpenAI, text: str
) -> None:
    assert [one.id for one in client.models.list()] == [server.model]
    assert client.models.retrieve(server.model).owned_by == "collm"
    whole = client.chat.completions.create(model=server.model, **ASKED)
    assert whole.choices[0].message.content == text
    assert whole.choices[0].message.tool_calls is None
    assert whole.usage is not None and whole.usage.completion_tokens == TOKENS
    summary = (whole.model_extra or {})["collm"]["summary"]
    assert sum(summary["sources"].values()) == TOKENS and summary["rounds"] > 0
    again = client.chat.completions.create(model=server.model, logprobs=True, **ASKED)
    assert again.choices[0].message.content == text
    assert again.usage is not None and again.usage.prompt_tokens_details is not None
    assert (again.usage.prompt_tokens_details.cached_tokens or 0) > 0
    logprobs = again.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert b"".join(bytes(one.bytes or []) for one in logprobs.content).decode() == text


def test_the_openai_sdk_streams(server: Server, client: openai.OpenAI, text: str) -> None:
    options = {"include_usage": True}
    stream = client.chat.completions.create(
        model=server.model, stream=True, stream_options=options, **ASKED
    )
    chunks = list(stream)
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == text
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == TOKENS
    stop = text[-5:]  # the SDK's collector takes no answer that its length has ended
    with client.chat.completions.stream(model=server.model, stop=stop, **ASKED) as events:
        collected = events.get_final_completion().choices[0]
    assert collected.message.content == text[: text.index(stop)]
    assert collected.finish_reason == "stop"
    prompt = client.completions.create(
        model=server.model, prompt="The sky is", max_tokens=4, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in prompt)


def test_the_openai_sdk_uses_the_responses_api(
    server: Server, client: openai.OpenAI, text: str
) -> None:
    asked: Any = {"model": server.model, "input": PROMPT, "temperature": 0}
    whole = client.responses.create(max_output_tokens=TOKENS, **asked)
    assert whole.output_text == text and whole.status == "incomplete"
    with client.responses.stream(max_output_tokens=TOKENS, **asked) as events:
        deltas = [one.delta for one in events if one.type == "response.output_text.delta"]
    assert "".join(deltas) == text


def test_the_openai_sdk_gets_what_it_parses(server: Server, client: openai.OpenAI) -> None:
    class Sky(BaseModel):
        colour: Literal["blue", "green"]
        height_km: Literal[8, 16]

    made = client.chat.completions.parse(
        model=server.model,
        messages=[{"role": "user", "content": f"{PROMPT} Answer in JSON."}],
        response_format=Sky,
        temperature=0,
        max_tokens=64,
        logprobs=True,
        top_logprobs=2,
    ).choices[0]
    assert isinstance(made.message.parsed, Sky)
    assert made.logprobs is not None and made.logprobs.content is not None
    assert any(one.top_logprobs for one in made.logprobs.content)


def test_the_openai_sdk_asks_for_several_things_at_once(server: Server, text: str) -> None:
    async def one(client: openai.AsyncOpenAI, stream: bool) -> str:
        if not stream:
            made = await client.chat.completions.create(model=server.model, **ASKED)
            return made.choices[0].message.content or ""
        parts = await client.chat.completions.create(model=server.model, stream=True, **ASKED)
        return "".join([part.choices[0].delta.content or "" async for part in parts])

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.api, api_key=KEY, max_retries=0) as client:
            return await asyncio.gather(*(one(client, bool(i % 2)) for i in range(4)))

    assert asyncio.run(run()) == [text] * 4


def test_the_openai_sdk_understands_what_is_refused(server: Server, client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with pytest.raises(openai.BadRequestError, match="calls no tools") as refused:
        create(model=server.model, tools=tools, **ASKED)
    assert (refused.value.param, refused.value.code) == ("tools", "unsupported_parameter")
    with pytest.raises(openai.NotFoundError, match="gpt-9") as missing:
        create(model="gpt-9", **ASKED)
    assert missing.value.code == "model_not_found"
    long: Any = {**ASKED, "messages": [{"role": "user", "content": "blue " * 9000}]}
    with pytest.raises(openai.BadRequestError) as full:
        create(model=server.model, **long)
    assert full.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server.api, api_key="wrong", max_retries=0).models.list()


def test_a_crowd_is_told_to_wait_and_leaving_makes_room(
    server: Server, client: openai.OpenAI, text: str
) -> None:
    long: Any = {**ASKED, "max_tokens": 500, "extra_body": {"ignore_eos": True}}
    with ThreadPoolExecutor(12) as pool:
        asked = [
            pool.submit(client.chat.completions.create, model=server.model, stream=True, **long)
            for _ in range(12)
        ]
        streams, refused = [], []
        for one in asked:
            error = one.exception(60)
            if error is None:
                streams.append(one.result())
            else:
                assert isinstance(error, openai.RateLimitError)
                refused.append(error)
            for stream in streams:
                stream.close()  # all hang up
    assert streams and refused
    assert int(refused[0].response.headers["retry-after"]) >= 1
    headers = {"Authorization": f"Bearer {KEY}"}
    for _ in range(200):
        status = httpx.get(f"{server.url}/collm/status", headers=headers).json()
        if not status["active"] and not status["waiting"]:
            break
    assert status["tokens"] < 12 * 500
    patient = client.with_options(max_retries=5)  # and room there is
    made = patient.chat.completions.create(model=server.model, **ASKED)
    assert made.choices[0].message.content == text


@pytest.mark.skipif(shutil.which("npm") is None, reason="node and npm are not installed")
def test_the_openai_package_of_npm(server: Server, text: str, tmp_path: Path) -> None:
    for name in ("package.json", "package-lock.json", "chat.mjs"):
        shutil.copy(CLIENTS / name, tmp_path)
    install = ["npm", "ci", "--no-audit", "--no-fund", "--prefer-offline", "--ignore-scripts"]
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True, timeout=90)
    ran = subprocess.run(
        ["node", "chat.mjs", server.api, server.model, KEY],
        cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["whole"] == told["streamed"] == told["collected"] == text
    assert told["usage"]["completion_tokens"] == told["sources"] == told["logprobs"] == TOKENS
    assert told["models"] == [server.model]
    assert told["tools"] == "BadRequestError 400 unsupported_parameter"
    assert told["missing"] == "NotFoundError 404 model_not_found"


def python(code: str, *words: str, **environment: str) -> str:
    """What a program prints, in a process of its own: these libraries change the whole process."""
    ran = subprocess.run(
        [sys.executable, "-c", code, *words],
        check=False, capture_output=True, text=True, timeout=90,
        env={**os.environ, "OPENAI_API_KEY": KEY, **environment},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_langchain(server: Server, text: str) -> None:
    code = """
import asyncio, json, sys
from langchain_openai import ChatOpenAI
url, model, prompt, tokens = sys.argv[1:]
chat = ChatOpenAI(
    base_url=url, model=model, temperature=0, max_tokens=int(tokens), max_retries=0
)
async def streamed():
    return "".join([part.content async for part in chat.astream(prompt)])
whole = chat.invoke(prompt)
print(json.dumps({
    "invoke": whole.content, "stream": "".join(part.content for part in chat.stream(prompt)),
    "astream": asyncio.run(streamed()), "tokens": whole.usage_metadata["output_tokens"],
}))
"""
    told = json.loads(python(code, server.api, server.model, PROMPT, str(TOKENS)))
    assert told == {"invoke": text, "stream": text, "astream": text, "tokens": TOKENS}


def test_litellm(server: Server, text: str) -> None:
    code = """
import json, sys
import litellm
url, model, prompt, tokens = sys.argv[1:]
asked = dict(
    model=f"openai/{model}", api_base=url, temperature=0, max_tokens=int(tokens),
    messages=[{"role": "user", "content": prompt}], num_retries=0,
)
whole = litellm.completion(**asked)
parts = litellm.completion(**asked, stream=True)
streamed = "".join(part.choices[0].delta.content or "" for part in parts)
print(json.dumps([whole.choices[0].message.content, streamed, whole.usage.completion_tokens]))
"""
    told = python(
        code, server.api, server.model, PROMPT, str(TOKENS), LITELLM_LOCAL_MODEL_COST_MAP="True"
    )
    assert json.loads(told.splitlines()[-1]) == [text, text, TOKENS]


def test_the_llm_command(server: Server, text: str, tmp_path: Path) -> None:
    model = {"model_id": "sky", "model_name": server.model, "api_base": server.api,
             "api_key_name": "ours"}  # fmt: skip
    (tmp_path / "keys.json").write_text(json.dumps({"ours": KEY}))
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))
    words = ["-m", "sky", PROMPT, "-o", "temperature", "0", "-o", "max_tokens", str(TOKENS)]
    code = "import sys; from llm.cli import cli; cli(sys.argv[1:])"
    where = {"LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": ""}
    assert python(code, *words, **where) == text + "\n"
