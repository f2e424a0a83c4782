"""Strangers: every call and route × no, wrong, expired credentials; certificates of others."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.contract.link_services import FakeService
from tests.support import random_artifact

from collm.errors import LinkError, Refused, Unreachable, UsageError
from collm.limits import Limits
from collm.link.background import BackgroundServer
from collm.link.credentials import ClientSecurity, ServerSecurity, TokenFile
from collm.link.grpc_client import connect
from collm.link.grpc_options import PATH
from collm.link.grpc_server import check_listen
from collm.runtime.stage import Stage
from collm.serve.metrics import metrics_server
from collm.session.cloud import CloudService
from collm.session.edge import Edge

LIMITS = Limits(connect_seconds=1.5, linger_seconds=0.2, keepalive_seconds=20)
GOOD, OLD, GONE = "goodgoodgoodgood-1", "goodgoodgoodgood-0", "expiredexpired-expired"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    today = datetime.now(UTC).date()
    write(path, f"# ours\npi {GOOD} {today}\npi {OLD}\nrobot {GONE} {today - timedelta(days=1)}\n")
    return path


def write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)


def pem(folder: Path, authority: trustme.CA, name: str, **more: str) -> tuple[Path, Path, Path]:
    """Authority, certificate and key files."""
    made = authority.issue_cert(name, **more)
    ca, cert, key = (folder / f"{name}-{what}.pem" for what in ("ca", "cert", "key"))
    authority.cert_pem.write_to_path(str(ca))
    made.cert_chain_pems[0].write_to_path(str(cert))
    made.private_key_pem.write_to_path(str(key))
    return ca, cert, key


def open_session(channel: Any, metadata: Any) -> object:
    call = channel.stream_stream(PATH)(iter([b"hello"]), metadata=metadata, timeout=3)
    return next(iter(call))


def check_health(channel: Any, metadata: Any) -> object:
    stub = health_pb2_grpc.HealthStub(channel)
    return stub.Check(health_pb2.HealthCheckRequest(), metadata=metadata, timeout=3).status


def watch_health(channel: Any, metadata: Any) -> object:
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest()
    return next(iter(stub.Watch(request, metadata=metadata, timeout=3))).status


def reflect(channel: Any, metadata: Any) -> object:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = next(iter(stub.ServerReflectionInfo(iter([asked]), metadata=metadata, timeout=3)))
    return [one.name for one in answer.list_services_response.service]


CALLS = [open_session, check_health, watch_health, reflect]


@pytest.fixture
def guarded(tokens: Path) -> Iterator[BackgroundServer]:
    security = ServerSecurity(tokens=tokens)
    with BackgroundServer(FakeService(), "127.0.0.1:0", LIMITS, security=security) as server:
        yield server


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer wrongwrongwrongwrong", f"Bearer {GONE}", f"Basic {GOOD}", GOOD,
     f"Bearer {GOOD}x", f"Bearer {GOOD[:-1]}"],
)  # fmt: skip
def test_every_call_refuses_strangers(
    guarded: BackgroundServer, call: Callable[[Any, Any], object], authorization: str | None
) -> None:
    metadata = None if authorization is None else [("authorization", authorization)]
    with grpc.insecure_channel(guarded.address) as channel, pytest.raises(grpc.RpcError) as caught:
        call(channel, metadata)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert GOOD not in str(caught.value.details())


def test_every_call_lets_friends_in(guarded: BackgroundServer) -> None:
    metadata = [("authorization", f"Bearer {GOOD}")]
    with grpc.insecure_channel(guarded.address) as channel:
        assert open_session(channel, metadata)
        assert check_health(channel, metadata) == health_pb2.HealthCheckResponse.SERVING
        assert watch_health(channel, metadata) == health_pb2.HealthCheckResponse.SERVING
        services = reflect(channel, metadata)
    assert {"collm.v1.Session", "grpc.health.v1.Health"} <= set(services)  # type: ignore[call-overload]


def test_the_services_that_are_there_are_those_that_were_tried(guarded: BackgroundServer) -> None:
    """A new service has to be added to `CALLS`."""
    with grpc.insecure_channel(guarded.address) as channel:
        services = reflect(channel, [("authorization", f"Bearer {GOOD}")])
    assert sorted(services) == [  # type: ignore[call-overload]
        "collm.v1.Session", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection",
    ]  # fmt: skip


def test_tokens_change_without_a_restart(guarded: BackgroundServer, tokens: Path) -> None:
    for token in (GOOD, OLD):
        connect(guarded.address, LIMITS, ClientSecurity(token=token)).close()
    write(tokens, "pi another-token-altogether\n")
    time.sleep(1.1)
    with pytest.raises(Refused, match="no valid credentials") as caught:
        connect(guarded.address, LIMITS, ClientSecurity(token=OLD))
    assert caught.value.code == "identity"
    connect(guarded.address, LIMITS, ClientSecurity(token="another-token-altogether")).close()
    # A file that became unusable changes nothing.
    write(tokens, "broken\n")
    time.sleep(1.1)
    connect(guarded.address, LIMITS, ClientSecurity(token="another-token-altogether")).close()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no tokens"),
        ("pi\n", "line 1: expected a name"),
        ("# x\npi short\n", "line 2: the token of pi is shorter"),
        (f"pi {GOOD} tomorrow\n", "no day such as"),
        (f"pi {GOOD} 2027-01-31 x\n", "expected a name"),
    ],
)
def test_token_files_that_are_none(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "tokens"
    write(path, text)
    with pytest.raises(UsageError, match=words):
        TokenFile(path)


def test_a_token_file_is_for_its_owner_alone(tokens: Path) -> None:
    tokens.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        TokenFile(tokens)
    with pytest.raises(UsageError, match="cannot be read"):
        TokenFile(tokens.parent / "none")


def test_tls_and_certificates_of_both_sides(tmp_path: Path, authority: trustme.CA) -> None:
    ca, cert, key = pem(tmp_path, authority, "localhost")
    _, edge_cert, edge_key = pem(tmp_path, authority, "pi.example", common_name="pi-1")
    stranger = trustme.CA()
    other_ca, other_cert, other_key = pem(tmp_path, stranger, "evil.example")
    security = ServerSecurity(certificate=cert, key=key, client_ca=ca)
    service = FakeService()
    with BackgroundServer(service, "127.0.0.1:0", LIMITS, security=security) as server:
        address = f"localhost:{server.server.port}"
        mine = ClientSecurity(ca=ca, certificate=edge_cert, key=edge_key)
        with connect(address, LIMITS, mine) as link:
            link.send(b"hello")
            assert link.receive(3)
        opened = service.record.opened
        for bad in (
            ClientSecurity(),  # no TLS
            ClientSecurity(ca=ca),  # no certificate
            ClientSecurity(ca=ca, certificate=other_cert, key=other_key),  # of another authority
            ClientSecurity(ca=other_ca, certificate=edge_cert, key=edge_key),  # the wrong cloud
        ):
            with pytest.raises(Unreachable):
                connect(address, LIMITS, bad)
        assert service.record.opened == opened


def test_who_a_session_belongs_to(tmp_path: Path, authority: trustme.CA, tokens: Path) -> None:
    """The certificate's common name, or the token's name where there are tokens."""
    ca, cert, key = pem(tmp_path, authority, "localhost")
    _, edge_cert, edge_key = pem(tmp_path, authority, "pi.example", common_name="pi-1")
    for asked, given, name in (
        (ServerSecurity(certificate=cert, key=key, client_ca=ca), "", "pi-1"),
        (ServerSecurity(certificate=cert, key=key, client_ca=ca, tokens=tokens), GOOD, "pi"),
        (ServerSecurity(certificate=cert, key=key, tokens=tokens), GOOD, "pi"),
    ):
        seen: list[str] = []

        class Noting(FakeService):
            def open(self, peer: Any) -> Any:
                seen.append(peer.identity)  # noqa: B023
                return super().open(peer)

        with BackgroundServer(Noting(), "127.0.0.1:0", LIMITS, security=asked) as server:
            mine = ClientSecurity(ca=ca, certificate=edge_cert, key=edge_key, token=given)
            with connect(f"localhost:{server.server.port}", LIMITS, mine) as link:
                link.send(b"hello")
                link.receive(3)
        assert seen == [name]


def test_a_certificate_is_replaced_without_a_restart(
    tmp_path: Path, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    ca, cert, key = pem(tmp_path, authority, "localhost")
    (tmp_path / "new").mkdir()
    new_ca, new_cert, new_key = pem(tmp_path / "new", trustme.CA(), "localhost")
    security = ServerSecurity(certificate=cert, key=key)
    with BackgroundServer(FakeService(), "127.0.0.1:0", LIMITS, security=security) as server:
        address = f"localhost:{server.server.port}"
        with connect(address, LIMITS, ClientSecurity(ca=ca)) as old:
            cert.write_bytes(new_cert.read_bytes())  # and its key is still to come
            connect(address, LIMITS, ClientSecurity(ca=ca)).close()
            assert "the certificate read before goes on counting" in caplog.text
            key.write_bytes(new_key.read_bytes())
            connect(address, LIMITS, ClientSecurity(ca=new_ca)).close()
            with pytest.raises(Unreachable):
                connect(address, LIMITS, ClientSecurity(ca=ca))
            old.send(b"hello")
            assert old.receive(3)
    none = tmp_path / "none.pem"
    none.write_bytes(b"-----BEGIN CERTIFICATE-----\nnothing")
    security = ServerSecurity(certificate=new_cert, key=new_key, client_ca=none)
    with pytest.raises(UsageError, match=r"none\.pem: no certificates"):
        BackgroundServer(FakeService(), "127.0.0.1:0", LIMITS, security=security)
    security = ServerSecurity(certificate=cert, key=key)
    key.write_bytes(b"-----BEGIN nothing")
    with pytest.raises(UsageError, match="no certificate with its key"):
        BackgroundServer(FakeService(), "127.0.0.1:0", LIMITS, security=security)


def test_halves_and_files_that_are_none(tmp_path: Path, authority: trustme.CA) -> None:
    ca, cert, key = pem(tmp_path, authority, "localhost")
    for make in (
        lambda: ServerSecurity(certificate=cert),
        lambda: ServerSecurity(client_ca=ca),
        lambda: ClientSecurity(certificate=cert, ca=ca),
        lambda: ClientSecurity(certificate=cert, key=key),
        lambda: ClientSecurity(token="two\nlines of it"),
    ):
        with pytest.raises(UsageError):
            make()
    none = tmp_path / "none.pem"
    with pytest.raises(UsageError, match="cannot be read"):
        connect("localhost:1", LIMITS, ClientSecurity(ca=none))
    none.write_text("hello")
    with pytest.raises(UsageError, match="no PEM file"):
        connect("localhost:1", LIMITS, ClientSecurity(ca=none))


def test_a_cloud_is_only_open_to_others_when_it_is_closed_to_strangers(
    tmp_path: Path, authority: trustme.CA, tokens: Path
) -> None:
    ca, cert, key = pem(tmp_path, authority, "localhost")
    whole = ServerSecurity(certificate=cert, key=key, tokens=tokens)
    for half, lack in (
        (ServerSecurity(), "no encryption .* and no authentication"),
        (ServerSecurity(tokens=tokens), "no encryption"),
        (ServerSecurity(certificate=cert, key=key), "no authentication"),
    ):
        with pytest.raises(UsageError, match=lack):
            check_listen("0.0.0.0:0", half, insecure=False)
        assert check_listen("0.0.0.0:0", half, insecure=True)
        assert check_listen("127.0.0.1:0", half, insecure=False)
    assert check_listen("0.0.0.0:0", whole, insecure=False)
    assert check_listen("0.0.0.0:0", replace(whole, tokens=None, client_ca=ca), insecure=False)


@pytest.mark.parametrize("route", ["/metrics", "/", "/metrics/../etc/passwd", "/health"])
def test_every_route_refuses_strangers(tokens: Path, route: str) -> None:
    with metrics_server("127.0.0.1:0", tokens=tokens) as where:
        for authorization in (None, "Bearer nobodys-token-at-all", f"Bearer {GONE}", GOOD):
            assert fetch(where, route, authorization)[0] == 401
        status, text = fetch(where, route, f"Bearer {GOOD}")
        assert status == (200 if route == "/metrics" else 404)
        assert ("collm_sessions" in text) == (status == 200)


def fetch(where: str, route: str, authorization: str | None) -> tuple[int, str]:
    request = urllib.request.Request(f"http://{where}{route}")
    if authorization is not None:
        request.add_header("Authorization", authorization)
    try:
        with urllib.request.urlopen(request, timeout=3) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_metrics_are_not_for_other_machines() -> None:
    with pytest.raises(UsageError, match="--insecure"), metrics_server("0.0.0.0:0"):
        pass
    with pytest.raises(LinkError, match="HOST:PORT"), metrics_server("nowhere"):
        pass


def test_an_identity_has_its_share_of_sessions(tmp_path: Path, tokens: Path) -> None:
    artifact = random_artifact(tmp_path / "artifact", cuts=(1, 2, 3), weights="int4")
    limits = replace(LIMITS, max_identity_sessions=2, kv_step=16)
    service = CloudService(Stage(artifact, range(4), limits=limits), limits)
    write(tokens, f"pi {GOOD}\nrobot {OLD}\n")
    security = ServerSecurity(tokens=tokens)
    with BackgroundServer(service, "127.0.0.1:0", limits, security=security) as server:

        def client(token: str) -> Any:
            mine = ClientSecurity(token=token)
            edge = Edge(artifact, mode="cloud", placement=0, limits=limits,
                        connect=lambda: connect(server.address, limits, mine))  # fmt: skip
            return edge._open_client(0, "f32")

        first, second = client(GOOD), client(GOOD)
        with pytest.raises(Refused, match="pi may have 2 sessions at once; try again in 2 s"):
            client(GOOD)
        client(OLD).close()
        first.close()
        deadline = time.monotonic() + 3
        while len(service.sessions) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        client(GOOD).close()
        second.close()


def test_nothing_inflates() -> None:
    """A frame that a few kilobytes unpack to is not unpacked."""
    with BackgroundServer(FakeService(), "127.0.0.1:0", LIMITS) as server:
        with grpc.insecure_channel(
            server.address, [("grpc.max_send_message_length", -1)], grpc.Compression.Gzip
        ) as channel:
            call = channel.stream_stream(PATH)(iter([bytes(2**28)]), timeout=10)
            with pytest.raises(grpc.RpcError) as caught:
                list(call)
        assert caught.value.code() in (
            grpc.StatusCode.UNIMPLEMENTED,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        )
        assert psutil.Process().memory_info().rss < 2**31
        connect(server.address, LIMITS).close()


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_the_tokens_are_not_in_memory_as_they_are(tokens: Path) -> None:
    assert GOOD not in repr(vars(TokenFile(tokens)))
