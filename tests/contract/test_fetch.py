"""Fetching from servers that do as they should, and from all others: the bytes are right, or none.

Each way of being wrong is tried alone (one line that says what) and beside a good source.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from tests.contract.blob_servers import BlobServer, Manners

from collm.errors import LinkError, Refused, UsageError
from collm.limits import Limits
from collm.link.credentials import ClientSecurity
from collm.link.fetch import Broken, Fetcher, NotThere, WrongAnswer
from collm.link.grpc_client import OPEN

LIMITS = Limits(
    connect_seconds=1.0, fetch_window_seconds=5.0, fetch_window_bytes=4096, fetch_attempts=2,
    fetch_pause_seconds=0.01, fetch_longest_pause_seconds=0.02,
)  # fmt: skip
HASTY = replace(LIMITS, fetch_window_seconds=0.5)
DATA = os.urandom(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
NOBODY = "http://127.0.0.1:9/x"


@dataclass
class Told:
    """What a fetch said meanwhile."""

    received: int = 0
    here: int = 0
    warnings: list[str] = field(default_factory=list)


def fetch(
    urls: Sequence[str],
    path: Path,
    *,
    data: bytes = DATA,
    security: ClientSecurity = OPEN,
    limits: Limits = LIMITS,
) -> Told:
    told = Told(here=path.stat().st_size if path.exists() else 0)

    def more(count: int) -> None:
        told.here += count

    async def run() -> None:
        async with Fetcher(security, limits) as fetcher:
            try:
                digest = await fetcher.fetch(
                    urls,
                    path,
                    size=len(data),
                    sha256=hashlib.sha256(data).hexdigest(),
                    told=more,
                    warn=told.warnings.append,
                )
                assert digest == hashlib.sha256(data).hexdigest()
            finally:
                told.received = fetcher.received_bytes

    asyncio.run(run())
    assert path.read_bytes() == data
    assert told.here == len(data)
    return told


def served(manners: Manners | None = None) -> BlobServer:
    return BlobServer({"/x": DATA}, manners)


def test_a_whole_file_in_one_request(tmp_path: Path) -> None:
    with served() as server:
        told = fetch([f"{server.url}/x"], tmp_path / "x")
        assert server.asked == [("/x", "")]
        assert told.received == server.sent["/x"] == len(DATA)
        assert server.headers[0]["Accept-Encoding"] == "identity"
        assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize("here", [1, 100_000, len(DATA) - 1])
def test_going_on_fetches_only_the_rest(tmp_path: Path, here: int) -> None:
    (tmp_path / "x").write_bytes(DATA[:here])
    with served() as server:
        fetch([f"{server.url}/x"], tmp_path / "x")
        assert server.asked == [("/x", f"bytes={here}-")]
        assert server.sent["/x"] == len(DATA) - here


def test_a_whole_partial_file_asks_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    assert fetch([NOBODY], tmp_path / "x").received == 0


def test_an_empty_file(tmp_path: Path) -> None:
    with BlobServer({"/x": b""}) as server:
        fetch([f"{server.url}/x"], tmp_path / "x", data=b"")


def test_a_server_without_ranges_starts_over(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA[:100_000])
    with served(Manners(ranges=False)) as server:
        fetch([f"{server.url}/x"], tmp_path / "x")
        assert server.sent["/x"] == len(DATA)


@pytest.mark.parametrize(
    "here", [DATA[:99] + b"!", DATA + b"!", b"!" * len(DATA)], ids=["short", "longer", "other"]
)
def test_a_wrong_partial_file_is_not_the_sources_fault(tmp_path: Path, here: bytes) -> None:
    (tmp_path / "x").write_bytes(here)
    with served() as server:
        assert fetch([f"{server.url}/x"], tmp_path / "x").warnings == []


def test_answers_that_break_off_are_gone_on_with(tmp_path: Path) -> None:
    """Each byte travels once, and as long as there is progress nobody gives up."""
    cuts = [20_000] * 10
    with served(Manners(cut={"/x": cuts})) as server:
        fetch([f"{server.url}/x"], tmp_path / "x")
        assert len(server.asked) == 11
        assert server.sent["/x"] == len(DATA)


BAD = {
    "wrong bytes": (Manners(corrupt={"/x"}), "its sha256 is"),
    "more bytes": (Manners(more={"/x": b"more"}), "sends more than 300000 bytes"),
    "more announced": (Manners(announced={"/x": len(DATA) + 1}), "announces 300001 bytes"),
    "fewer announced": (Manners(announced={"/x": 5}), "announces 5 bytes, expected 300000"),
    "not there": (Manners(statuses={"/x": [404] * 99}), "not there (404)"),
    "sent on": (Manners(statuses={"/x": [302] * 99}), "which is not followed"),
    "stranger": (Manners(statuses={"/x": [401] * 99}), "no valid credentials (401)"),
    "teapot": (Manners(statuses={"/x": [418] * 99}), "answered 418"),
    "busy": (Manners(statuses={"/x": [503] * 99}), "busy or broken (503)"),
    "drips": (Manners(dripped={"/x"}), "is too slow"),
    "silent": (Manners(silent={"/x"}), "went silent"),
    "breaks off": (Manners(cut={"/x": [0] * 99}), "peer closed connection"),
}


SLOW = ("drips", "silent")
KINDS = [pytest.param(k, marks=pytest.mark.timed) if k in SLOW else k for k in BAD]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_source_alone_is_one_line(tmp_path: Path, kind: str) -> None:
    manners, words = BAD[kind]
    with served(manners) as server:
        started = time.monotonic()
        with pytest.raises(LinkError) as caught:
            fetch([f"{server.url}/x"], tmp_path / "x", limits=HASTY if kind in SLOW else LIMITS)
        assert time.monotonic() - started < 10
        assert str(caught.value).startswith(f"no source gave it: {server.url}/x: ")
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert (tmp_path / "x").stat().st_size < len(DATA)


@pytest.mark.parametrize("kind", KINDS)
def test_beside_a_good_source_a_bad_one_costs_nothing(tmp_path: Path, kind: str) -> None:
    manners, words = BAD[kind]
    with served(manners) as bad, served() as good:
        urls = [f"{bad.url}/x", f"{good.url}/x"]
        told = fetch(urls, tmp_path / "x", limits=HASTY if kind in SLOW else LIMITS)
        assert bad.paths() == ["/x"]
        assert good.paths() == ["/x"]
        # What another time may mend is not worth a line.
        if kind not in ("busy", "drips", "silent", "breaks off"):
            (line,) = told.warnings
            assert line.startswith(f"{bad.url}/x: ") and words in line
            assert line.endswith("another source is asked")
        else:
            assert told.warnings == []


def test_nothing_more_than_the_size_is_ever_kept(tmp_path: Path) -> None:
    with served(Manners(more={"/x": b"m" * 2_000_000})) as server:
        with pytest.raises(LinkError):
            fetch([f"{server.url}/x"], tmp_path / "x")
    assert (tmp_path / "x").stat().st_size == 0


def test_another_range_than_asked_for_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA[:1000])
    with served(Manners(wrong_range={"/x"})) as bad, served() as good:
        told = fetch([f"{bad.url}/x", f"{good.url}/x"], tmp_path / "x")
        assert "sends 'bytes 999-299999/300000', expected bytes 1000-" in told.warnings[0]
        assert good.asked == [("/x", "bytes=1000-")]


def test_a_partial_file_goes_on_from_another_source(tmp_path: Path) -> None:
    with served(Manners(cut={"/x": [100_000]})) as first, served() as second:
        fetch([f"{first.url}/x", f"{second.url}/x"], tmp_path / "x")
        assert first.sent["/x"] == 100_000
        assert second.asked == [("/x", "bytes=100000-")]


def test_a_source_that_is_away_is_asked_last_from_then_on(tmp_path: Path) -> None:
    async def run() -> None:
        async with Fetcher(OPEN, LIMITS) as fetcher:
            for name in ("a", "b", "c"):
                await fetcher.fetch(
                    [NOBODY, f"{server.url}/x"],
                    tmp_path / name,
                    size=len(DATA),
                    sha256=SHA256,
                    told=lambda _n: None,
                    warn=lambda _l: None,
                )
            assert fetcher._troubles == {"http://127.0.0.1:9": 1, server.url: 0}

    with served() as server:
        asyncio.run(run())
        assert len(server.asked) == 3


def test_all_that_was_tried_is_told(tmp_path: Path) -> None:
    with served(Manners(corrupt={"/x"})) as server:
        with pytest.raises(LinkError) as caught:
            fetch([NOBODY, f"{server.url}/x"], tmp_path / "x")
        assert NOBODY in str(caught.value)
        assert server.url in str(caught.value)


def test_cancelled_the_bytes_stay(tmp_path: Path) -> None:
    async def run() -> None:
        async with Fetcher(OPEN, LIMITS) as fetcher:
            came = asyncio.Event()
            fetching = asyncio.create_task(
                fetcher.fetch(
                    [f"{server.url}/x"],
                    tmp_path / "x",
                    size=len(DATA),
                    sha256=SHA256,
                    told=lambda _n: came.set(),
                    warn=lambda _l: None,
                )
            )
            await came.wait()
            fetching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await fetching

    with served(Manners(bytes_per_second=1e6)) as server:
        asyncio.run(run())
        here = (tmp_path / "x").stat().st_size
        assert 0 < here < len(DATA)
        fetch([f"{server.url}/x"], tmp_path / "x")
        assert server.asked[1] == ("/x", f"bytes={here}-")


def get(
    url: str, most: int = 1000, security: ClientSecurity = OPEN, limits: Limits = LIMITS
) -> bytes:
    async def run() -> bytes:
        async with Fetcher(security, limits) as fetcher:
            return await fetcher.get(url, most)

    return asyncio.run(run())


def test_small_documents_are_bounded_in_size_and_time() -> None:
    with served(Manners(dripped={"/drips"})) as server:
        server.files |= {"/small": b"abc", "/drips": b"d" * 900}
        assert get(f"{server.url}/small") == b"abc"
        with pytest.raises(WrongAnswer, match="larger than 1000 bytes"):
            get(f"{server.url}/x")
        with pytest.raises(Broken, match=r"no whole answer within 0\.5 s"):
            get(f"{server.url}/drips", limits=HASTY)
        with pytest.raises(NotThere):
            get(f"{server.url}/none")
    with pytest.raises(Broken, match=r"attempts failed|refused"):
        get(NOBODY)


def test_a_token_travels_only_where_nobody_listens() -> None:
    secret = ClientSecurity(token="goodgoodgoodgood-1")
    with served() as server:
        server.files["/small"] = b"abc"
        get(f"{server.url}/small", security=secret)
        assert server.headers[0]["Authorization"] == "Bearer goodgoodgoodgood-1"
        server.manners.statuses["/small"] = [401]
        with pytest.raises(Refused, match="--token-file"):
            get(f"{server.url}/small", security=secret)
    with pytest.raises(UsageError, match="would travel unencrypted"):
        get("http://192.0.2.1/x", security=secret)


@pytest.mark.parametrize(
    "url",
    ["ftp://h/x", "http://", "http:///x", "http://h:99999/x", "http://u:p@h/x", "http://h/x?q",
     "http://h/x#f", "h:80", "http://h\n/x", "http://[::1/x"],
)  # fmt: skip
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="expected http://HOST:PORT"):
        get(url)
