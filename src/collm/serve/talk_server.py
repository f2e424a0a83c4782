"""Talking with a server: `collm serve`, or any other that has OpenAI's chat API, over SSE."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from collm.config import Generation
from collm.errors import (
    LinkError,
    PromptError,
    ProtocolError,
    Refused,
    Unreachable,
    UsageError,
    one_line,
)
from collm.limits import DEFAULT_LIMITS, Limits
from collm.link.address import is_loopback, split_url
from collm.serve.talk import Message, Said, Tally

_MOST_LINE_BYTES = 2**20
_MOST_BODY_BYTES = 2**20
_RETRY_SECONDS = 5.0


class ServerTalker:
    """See `Talker`. Raises UsageError, Unreachable, Refused and ProtocolError when made.

    url: of the server, with or without /v1. model: its id; empty: the first it lists.
    """

    has_defaults = True

    def __init__(
        self,
        url: str,
        *,
        model: str = "",
        key: str = "",
        ca: Path | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        parts = split_url(url)
        host = parts.hostname or ""
        if key and parts.scheme == "http" and not is_loopback(host):
            raise UsageError(f"{url}: the token would travel unencrypted; use an https:// address")
        self._url = url.rstrip("/").removesuffix("/v1")
        patience = limits.verdict_seconds + limits.resume_seconds
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(patience, connect=limits.connect_seconds),
            verify=ssl.create_default_context(cafile=ca) if ca is not None else True,
            trust_env=not is_loopback(host),
        )
        self.tally: Tally | None = None
        try:
            self._model = model or self._first_model()
            status = self._status()
        except BaseException:
            self._client.close()
            raise
        self._is_collm = status is not None
        self.modes = tuple(str(one) for one in (status or {}).get("modes", ()))
        self.exits = tuple(one for one in (status or {}).get("exits", ()) if type(one) is int)
        self.name = f"{one_line(self._model, 80)} at {self._url}"

    def close(self) -> None:
        """End its connections."""
        self._client.close()

    def say(
        self, messages: Sequence[Message], generation: Generation, chosen: frozenset[str]
    ) -> Iterator[Said]:
        """See `Talker`."""
        self.tally = None
        body = self._body(messages, generation, chosen)
        begun = time.perf_counter()
        first, tokens, usage = 0.0, 0, dict[str, Any]()
        summary: Mapping[str, Any] = {}
        finish = "stop"
        try:
            for chunk in self._chunks(body):
                usage = _object(chunk.get("usage")) or usage
                choices = chunk.get("choices") or [{}]
                choice = _object(choices[0]) if isinstance(choices, list) else {}
                finish = str(choice.get("finish_reason") or finish)
                extra = _object(chunk.get("collm"))
                summary = _object(extra.get("summary")) or summary
                said = _said(_object(choice.get("delta")), extra)
                if said is not None:
                    first = first or time.perf_counter() - begun
                    tokens += not said.preview
                    yield said
        finally:
            seconds = time.perf_counter() - begun
            self.tally = _tally(summary, usage, tokens, seconds, first, finish)

    def _body(
        self, messages: Sequence[Message], generation: Generation, chosen: frozenset[str]
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [dict(one) for one in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        sampling = generation.sampling
        plain = {
            "temperature": sampling.temperature,
            "top-p": sampling.top_p,
            "seed": sampling.seed,
            "max-tokens": generation.max_tokens,
        }
        ours = {
            "top-k": sampling.top_k,
            "repetition-penalty": sampling.repetition_penalty,
            "ignore-eos": generation.ignore_eos,
        }
        options = {
            "mode": generation.mode,
            "threshold": generation.threshold,
            "criterion": generation.criterion,
            "draft": generation.draft,
            "batch": generation.batch,
            "ahead": generation.ahead,
            "lookup": generation.lookup,
        }
        told = plain | (ours if self._is_collm else {})
        body |= {name.replace("-", "_"): told[name] for name in told.keys() & chosen}
        if self._is_collm:
            asked = {name: options[name] for name in options.keys() & chosen}
            if "deadline" in chosen:
                asked["deadline_ms"] = 1000 * generation.deadline_seconds
            if asked:
                body["collm"] = asked
        return body

    def _chunks(self, body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        try:
            with self._client.stream(
                "POST", f"{self._url}/v1/chat/completions", json=body
            ) as answer:
                if answer.status_code != 200:
                    raise _error(answer.status_code, _read(answer), answer.headers)
                for line in _lines(answer):
                    if not line.startswith("data:"):
                        continue
                    data = line[5:].strip()
                    if data == "[DONE]":
                        return
                    chunk = _parsed(data, self._url)
                    if "error" in chunk:
                        said = _object(chunk["error"]).get("message", "an error")
                        raise LinkError(f"{self._url}: {one_line(said)}")
                    yield chunk
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _first_model(self) -> str:
        listed = self._get("/v1/models").get("data")
        found = listed[0] if isinstance(listed, list) and listed else None
        if not isinstance(found, dict) or not isinstance(found.get("id"), str):
            raise ProtocolError(f"{self._url}/v1/models: lists no model; name one with --model")
        return str(found["id"])

    def _status(self) -> Mapping[str, Any] | None:
        """What CoLLM says of itself; None for another server."""
        try:
            found = self._get("/collm/status")
        except (LinkError, ProtocolError, PromptError):
            return None
        return found if isinstance(found.get("modes"), list) else None

    def _get(self, path: str) -> Mapping[str, Any]:
        try:
            with self._client.stream("GET", self._url + path) as answer:
                text = _read(answer)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if answer.status_code != 200:
            raise _error(answer.status_code, text, answer.headers, f"{self._url}{path}: ")
        return _parsed(text, self._url + path)

    def _unreachable(self, error: httpx.HTTPError) -> Unreachable:
        said = one_line(error, 120) or type(error).__name__
        return Unreachable(f"{self._url}: {said}; is it up? start one with: collm serve ARTIFACT")


def _said(delta: Mapping[str, Any], extra: Mapping[str, Any]) -> Said | None:
    source = one_line(extra.get("source") or "", 40)
    if extra.get("preview") is not None:
        return Said(str(extra["preview"]), source, preview=True, provisional=True)
    content = delta.get("content")
    if not isinstance(content, str) or (not content and not source):
        return None
    return Said(content, source, provisional=bool(extra.get("provisional")))


def _tally(
    summary: Mapping[str, Any],
    usage: Mapping[str, Any],
    tokens: int,
    seconds: float,
    first: float,
    finish: str,
) -> Tally:
    def number(table: Mapping[str, Any], name: str, default: int = 0) -> int:
        value = table.get(name)
        return value if type(value) is int else default

    sources = {one_line(k, 40): v for k, v in _object(summary.get("sources")).items()}
    return Tally(
        mode=one_line(summary.get("mode") or "", 20),
        tokens=number(usage, "completion_tokens", tokens),
        prompt_tokens=number(usage, "prompt_tokens"),
        reused_tokens=number(summary, "reused_tokens"),
        sources={name: count for name, count in sources.items() if type(count) is int},
        rounds=number(summary, "rounds"),
        bytes_up=number(summary, "bytes_up"),
        bytes_down=number(summary, "bytes_down"),
        seconds=seconds,
        first_seconds=first,
        reconnects=number(summary, "reconnects"),
        previewed=number(summary, "previewed"),
        withdrawn=number(summary, "withdrawn"),
        provisional=number(summary, "provisional"),
        finish_reason=one_line(finish, 40),
    )


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _lines(answer: httpx.Response) -> Iterator[str]:
    """Lines of a stream, none of them longer than is bearable."""
    held = b""
    for some in answer.iter_bytes():
        held += some
        *whole, held = held.split(b"\n")
        if len(held) > _MOST_LINE_BYTES:
            raise ProtocolError(f"{answer.url}: a line of over {_MOST_LINE_BYTES} bytes")
        for line in whole:
            yield line.decode(errors="replace").rstrip("\r")
    if held:
        yield held.decode(errors="replace")


def _read(answer: httpx.Response) -> str:
    body = b""
    for some in answer.iter_bytes():
        body += some
        if len(body) > _MOST_BODY_BYTES:
            raise ProtocolError(f"{answer.url}: over {_MOST_BODY_BYTES} bytes")
    return body.decode(errors="replace")


def _parsed(text: str, where: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ProtocolError(f"{where}: no JSON object ({one_line(text, 60)!r}); is it an API?")
    return found


def _error(
    status: int, text: str, headers: Mapping[str, str], where: str = ""
) -> LinkError | PromptError:
    try:
        said = one_line(_object(_object(json.loads(text)).get("error"))["message"])
    except (ValueError, KeyError, RecursionError):
        said = f"HTTP {status} {one_line(text, 100)}".strip()
    if status == 429:
        after = headers.get("retry-after", "")
        seconds = float(after) if after.isdecimal() else _RETRY_SECONDS
        return Refused("busy", f"{where}{said}; try again in {seconds:g} s", seconds)
    if status in (401, 403):
        return Refused("identity", f"{where}{said}; give --token-file FILE")
    if status in (400, 404, 413, 422) and not where:
        return PromptError(said)
    return LinkError(f"{where}{said}")
