"""Files over HTTP: by their sha256, from several sources in turn, going on where one broke off.

An answer is believed for nothing: its length, its range and its hash have to be what was asked
for. Redirects are not followed. A source that sent wrong bytes is not asked for that file again;
one that is slow, away or broke off is, after a pause, behind the others.

Not covered: what the files are, where they go in the end, more than one connection a file.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self

import httpx

from collm.errors import LinkError, Refused, UsageError, one_line
from collm.limits import DEFAULT_LIMITS, Limits
from collm.link.credentials import ClientSecurity, read_pem
from collm.link.grpc_client import OPEN
from collm.link.source_address import check_source, origin

_LOOPBACK: Final = ("all://127.0.0.1", "all://localhost", "all://[::1]")
_BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class NotThere(LinkError):
    """The server has nothing by that address."""


class WrongAnswer(LinkError):
    """What the server sends is not what was asked for; asking again is vain."""


class Broken(LinkError):
    """No answer, or not all of it; there may be one another time."""


class Fetcher:
    """An HTTP client for one event loop; use it as an async context manager.

    security: the authority, this edge's certificate and its token, which every source is sent.
    Raises UsageError for files that are none.
    """

    def __init__(self, security: ClientSecurity = OPEN, limits: Limits = DEFAULT_LIMITS) -> None:
        self._security = security
        self._limits = limits
        self.received_bytes = 0
        """Of files, whether they were of use or not."""
        self._troubles: Counter[str] = Counter()
        """Failures in a row, by origin: who has few is asked first."""
        self._mistaken: Counter[str] = Counter()
        """Files that came to another hash than they should, by address."""
        # Bytes are counted, ranged over and hashed as they lie on the disk: uncompressed.
        headers = {"Accept-Encoding": "identity", "User-Agent": "collm"}
        if security.token:
            headers["Authorization"] = f"Bearer {security.token}"
        self._client = httpx.AsyncClient(
            headers=headers,
            verify=_context(security),
            # A proxy that the environment names is not for what is on this machine.
            mounts=dict.fromkeys(_LOOPBACK),
            timeout=httpx.Timeout(limits.fetch_window_seconds, connect=limits.connect_seconds),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def get(self, url: str, most_bytes: int) -> bytes:
        """A small document, at most so long.

        Raises NotThere, Refused where the credentials are, WrongAnswer, Broken; UsageError.
        """
        check_source(url, self._security)
        made = bytearray()
        try:
            async with asyncio.timeout(self._limits.fetch_window_seconds):
                async with self._answer(url, {}) as answer:
                    async for chunk in answer.aiter_raw():
                        made += chunk
                        if len(made) > most_bytes:
                            raise WrongAnswer(f"{url}: larger than {most_bytes} bytes")
        except TimeoutError:
            seconds = self._limits.fetch_window_seconds
            raise Broken(f"{url}: no whole answer within {seconds:g} s") from None
        return bytes(made)

    async def fetch(
        self,
        urls: Sequence[str],
        path: Path,
        *,
        size: int,
        sha256: str,
        told: Callable[[int], None],
        warn: Callable[[str], None],
    ) -> str:
        """Bring the file `path`, of which some bytes may be there, to what `sha256` names.

        urls: where it is to be had, the preferred one first. told: called with every change of
        the bytes there, negative when some are thrown away. warn: called with a line about every
        source that is no good. Returns the digest of the whole file, as it came; what is there of
        it stays when this is cancelled. Raises LinkError where no source has it, OSError.
        """
        wrong: dict[str, LinkError] = {}
        tried: dict[str, LinkError] = {}
        vain = 0
        while left := [url for url in urls if url not in wrong]:
            url = min(left, key=lambda one: self._troubles[origin(one)])
            if url in tried:
                await asyncio.sleep(self._pause(vain))
            before = _size(path)
            try:
                digest = await self._once(url, path, size, sha256, told)
            except (WrongAnswer, NotThere, Refused) as error:
                wrong[url] = error
                warn(f"{error}; {'another source is asked' if len(left) > 1 else 'given up'}")
                continue
            except Broken as error:
                tried[url] = error
                self._troubles[origin(url)] += 1
                is_progress = _size(path) - before >= self._limits.fetch_window_bytes
                vain = 0 if is_progress else vain + 1
                if vain >= self._limits.fetch_attempts * len(left):
                    break
                continue
            self._troubles[origin(url)] = 0
            return digest
        told_of = {**tried, **wrong}
        raise LinkError("no source gave it: " + "; ".join(str(error) for error in told_of.values()))

    def _pause(self, vain: int) -> float:
        limits = self._limits
        longest = min(limits.fetch_pause_seconds * 2**vain, limits.fetch_longest_pause_seconds)
        return random.uniform(longest / 2, longest)

    async def _once(
        self, url: str, path: Path, size: int, sha256: str, told: Callable[[int], None]
    ) -> str:
        """One attempt, from the bytes that are there to the end. Raises WrongAnswer, Broken, …"""
        check_source(url, self._security)
        # Unbuffered: what has come survives however this process ends.
        with path.open("ab", buffering=0) as file:

            def start_over() -> None:
                told(-os.fstat(file.fileno()).st_size)
                file.truncate(0)

            begun = os.fstat(file.fileno()).st_size
            if begun > size:
                start_over()
                begun = 0
            digest = await asyncio.to_thread(_digest, path) if begun else hashlib.sha256()
            done = begun
            if done < size or not size:
                headers = {"Range": f"bytes={begun}-"} if begun else {}
                async with self._answer(url, headers) as answer:
                    if answer.status_code != 206 and begun:  # a server that knows no ranges
                        start_over()
                        begun = done = 0
                        digest = hashlib.sha256()
                    _check_length(url, answer, begun, size)
                    async for chunk in self._chunks(url, answer):
                        done += len(chunk)
                        if done > size:
                            start_over()
                            raise WrongAnswer(f"{url}: sends more than {size} bytes")
                        digest.update(chunk)
                        _write(file.fileno(), chunk)
                        told(len(chunk))
                if done < size:
                    raise Broken(f"{url}: broke off after {done} of {size} bytes")
            if digest.hexdigest() == sha256:
                return sha256
            start_over()
            what = f"{url}: its sha256 is {digest.hexdigest()[:12]}…, not {sha256[:12]}…"
            # What was there before may be what is wrong: then this source has its chance, once.
            self._mistaken[url] += 1
            if begun and self._mistaken[url] < 2:
                raise Broken(what)
            raise WrongAnswer(f"{what}; refused")

    async def _chunks(self, url: str, answer: httpx.Response) -> AsyncIterator[bytes]:
        """The bytes as they come. Raises Broken where they come too slowly."""
        limits = self._limits
        since, came = time.monotonic(), 0
        async for chunk in answer.aiter_raw():  # as they come: no byte waits for others
            yield chunk
            self.received_bytes += len(chunk)
            came += len(chunk)
            now = time.monotonic()
            if now - since > limits.fetch_window_seconds:
                if came < limits.fetch_window_bytes:
                    raise Broken(f"{url}: {came} bytes in {now - since:.0f} s is too slow")
                since, came = now, 0

    @asynccontextmanager
    async def _answer(self, url: str, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
        """The head of an answer whose body can be read; what goes wrong meanwhile, as LinkError."""
        answer: httpx.Response | None = None
        try:
            request = self._client.build_request("GET", url, headers=headers)
            # Its own timeouts are for single reads: a head can be dripped for ever.
            async with asyncio.timeout(self._limits.fetch_window_seconds):
                answer = await self._client.send(request, stream=True, follow_redirects=False)
            _check_status(url, answer)
            yield answer
        except TimeoutError:
            raise Broken(f"{url}: no answer") from None
        except httpx.TimeoutException as error:
            what = "nobody answers" if answer is None else "went silent"
            raise Broken(f"{url}: {what} ({type(error).__name__})") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            if isinstance(error, OSError) and not isinstance(error, ssl.SSLError | ConnectionError):
                raise  # the disk's
            raise Broken(f"{url}: {one_line(error) or type(error).__name__}") from None
        finally:
            if answer is not None:
                await answer.aclose()


def _context(security: ClientSecurity) -> ssl.SSLContext:
    """What a server's certificate has to be signed by: the CA named, or those of the system."""
    try:
        if security.ca is None:
            context = httpx.create_ssl_context()
        else:
            ca = read_pem(security.ca).decode(errors="replace")
            context = ssl.create_default_context(cadata=ca)
        if security.certificate is not None:
            context.load_cert_chain(security.certificate, security.key, password=lambda: "")
    except (OSError, ValueError) as error:
        raise UsageError(f"--ca, --cert or --key: not to be used ({error})") from None
    return context


def _check_status(url: str, answer: httpx.Response) -> None:
    code = answer.status_code
    if code in (401, 403):
        raise Refused("identity", f"{url}: no valid credentials ({code}); see --token-file, --cert")
    if code in (404, 410):
        raise NotThere(f"{url}: not there ({code})")
    if answer.is_redirect:
        to = answer.headers.get("location", "nowhere")[:200]
        raise WrongAnswer(f"{url}: sends on to {to!r}, which is not followed; name that yourself")
    if code in _BUSY:
        raise Broken(f"{url}: busy or broken ({code})")
    if code not in (200, 206):
        raise WrongAnswer(f"{url}: answered {code}")
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise WrongAnswer(f"{url}: encodes what it sends, though asked not to")


def _check_length(url: str, answer: httpx.Response, begun: int, size: int) -> None:
    """Raise WrongAnswer where the head announces other bytes than [begun, size)."""
    if answer.status_code == 206:
        given = answer.headers.get("content-range", "")
        if given not in (f"bytes {begun}-{size - 1}/{size}", f"bytes {begun}-{size - 1}/*"):
            raise WrongAnswer(
                f"{url}: sends {given[:80]!r}, expected bytes {begun}-{size - 1}/{size}"
            )
    announced = answer.headers.get("content-length", str(size - begun))
    if announced != str(size - begun):
        raise WrongAnswer(f"{url}: announces {announced[:20]} bytes, expected {size - begun}")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _digest(path: Path) -> hashlib._Hash:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
