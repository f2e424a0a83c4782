"""Does an HTTP server of CoLLM's answer: the API of `collm serve`, or a shelf of artifacts?"""

from __future__ import annotations

import ssl
import time
from pathlib import Path

import httpx

from collm.errors import UsageError, one_line
from collm.limits import DEFAULT_LIMITS, Limits
from collm.link.address import split_url
from collm.link.credentials import ClientSecurity
from collm.serve.checks.finding import Finding, Findings, fault, ok, warning
from collm.serve.checks.reach import Reached, check_clock, check_tls, check_way


def check_server(url: str, security: ClientSecurity, limits: Limits = DEFAULT_LIMITS) -> Findings:
    """The API: reachable, healthy, ready, and which models it has."""
    reached = Reached()
    yield from _way(url, security, limits, reached, "server")
    if not reached.tls:
        return
    with _client(url, security, limits) as client:
        health = _get(client, "/healthz")
        if isinstance(health, str):
            yield fault("server", f"{url}: {health}", "look at its log")
            return
        yield from check_clock(health.headers.get("date", ""), url, health.elapsed.total_seconds())
        if health.status_code == 200:
            yield ok("server", f"{url} is up")
        else:
            yield warning(
                "server",
                f"{url}/healthz: HTTP {health.status_code}",
                "another OpenAI-compatible server? then all is well",
            )
        ready = _get(client, "/readyz")
        if not isinstance(ready, str) and ready.status_code == 503:
            yield fault(
                "server",
                f"it is not ready: {one_line(ready.text, 120)}",
                "its cloud may be away: collm doctor ARTIFACT --cloud HOST:PORT",
            )
        models = _get(client, "/v1/models")
        if isinstance(models, str) or models.status_code in (401, 403):
            told = models if isinstance(models, str) else f"HTTP {models.status_code}"
            yield fault("API", f"{url}/v1/models: {told}", "give --token-file with an API key")
        elif models.status_code != 200:
            yield fault(
                "API",
                f"{url}/v1/models: HTTP {models.status_code}",
                "is this the address of collm serve?",
            )
        else:
            yield _models(models)


def check_artifacts(
    url: str, security: ClientSecurity, limits: Limits = DEFAULT_LIMITS
) -> Findings:
    """A shelf that `collm pull` fetches from."""
    reached = Reached()
    yield from _way(url, security, limits, reached, "artifacts")
    if not reached.tls:
        return
    with _client(url, security, limits) as client:
        answer = _get(client, "/artifacts")
        if isinstance(answer, str):
            yield fault("artifacts", f"{url}: {answer}", "look at its log")
            return
        seconds = answer.elapsed.total_seconds()
        yield from check_clock(answer.headers.get("date", ""), url, seconds)
        if answer.status_code in (401, 403):
            yield fault("artifacts", f"{url} wants a token", "give --token-file")
        elif answer.status_code == 404:
            yield warning("artifacts", f"{url} has no list", "a plain HTTP folder serves as well")
        else:
            yield ok("artifacts", f"{url} answers in {1000 * seconds:.0f} ms")


def _way(
    url: str, security: ClientSecurity, limits: Limits, reached: Reached, check: str
) -> Findings:
    try:
        parts = split_url(url)
    except UsageError:
        yield fault(check, f"{one_line(url, 80)!r}", "expected a URL such as http://127.0.0.1:8000")
        return
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    yield from check_way(host, port, limits, reached, check)
    if reached.tcp and parts.scheme == "https" and security.ca is not None:
        yield from check_tls(host, port, security, limits, reached, protocols=("http/1.1",))
    else:
        reached.tls = reached.tcp


def _client(url: str, security: ClientSecurity, limits: Limits) -> httpx.Client:
    headers = {"Authorization": f"Bearer {security.token}"} if security.token else {}
    return httpx.Client(
        base_url=url,
        headers=headers,
        timeout=limits.probe_seconds,
        verify=_context(security.ca) if security.ca is not None else True,
        trust_env=False,
    )


def _context(ca: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca)


def _get(client: httpx.Client, path: str) -> httpx.Response | str:
    started = time.perf_counter()
    try:
        return client.get(path)
    except httpx.HTTPError as error:
        return f"{one_line(error, 120)} after {time.perf_counter() - started:.1f} s"


def _models(answer: httpx.Response) -> Finding:
    try:
        names = [str(one["id"]) for one in answer.json()["data"]]
    except (ValueError, KeyError, TypeError):
        return fault("API", "/v1/models is no list of models", "is this collm serve's address?")
    return ok("API", f"models: {one_line(', '.join(names), 120)}")
