"""Artifacts over HTTP: what manifests name, for whom it is meant, and nothing else."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme
from tests.contract.test_security import GOOD, pem, write
from tests.support import random_artifact

from collm.errors import ArtifactError, LinkError, Refused, UsageError
from collm.link.credentials import ClientSecurity, ServerSecurity
from collm.model.artifact import Artifact
from collm.serve.artifacts import artifact_server
from collm.session.pull import PullSettings, pull


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("served") / "a"
    artifact = random_artifact(folder)
    (folder / "secret.txt").write_text("not in the manifest")
    return artifact


@pytest.fixture(scope="module")
def url(made: Artifact) -> Iterator[str]:
    with artifact_server([made.folder], "127.0.0.1:0") as address:
        yield address


def raw(url: str, method: str, target: str) -> tuple[int, bytes]:
    """The target as it is, without a client that tidies it up."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    connection.request(method, target)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_what_there_is(url: str, made: Artifact) -> None:
    listing = httpx.get(f"{url}/artifacts").json()
    (one,) = listing["artifacts"]
    assert one["name"] == "random"
    assert one["fingerprint"] == made.fingerprint
    assert one["bytes"] == sum(entry.bytes for entry in made.manifest.files.values())
    manifest = httpx.get(f"{url}/artifacts/{made.fingerprint}/manifest.json").content
    assert manifest == (made.folder / "manifest.json").read_bytes()


def test_blobs_whole_in_part_and_their_heads(url: str, made: Artifact) -> None:
    for name, entry in made.manifest.files.items():
        address = f"{url}/blobs/sha256/{entry.sha256}"
        data = (made.folder / name).read_bytes()
        whole = httpx.get(address)
        assert whole.content == data
        assert whole.headers["etag"] == f'"{entry.sha256}"'
        assert "immutable" in whole.headers["cache-control"]
        head = httpx.head(address)
        assert head.content == b"" and head.headers["content-length"] == str(len(data))
        part = httpx.get(address, headers={"Range": "bytes=10-"})
        assert part.status_code == 206
        assert part.content == data[10:]
        assert part.headers["content-range"] == f"bytes 10-{len(data) - 1}/{len(data)}"
        assert httpx.get(address, headers={"Range": f"bytes={len(data)}-"}).status_code == 416
        known = httpx.get(address, headers={"If-None-Match": f'"{entry.sha256}"'})
        assert known.status_code == 304 and known.content == b""


@pytest.mark.parametrize(
    "target",
    [
        "/", "/artifacts/x/manifest.json", "/blobs/sha256/" + "0" * 64, "/blobs/sha256/",
        "/blobs/sha256/../../secret.txt", "/blobs/sha256/..%2f..%2fsecret.txt",
        "/blobs/sha256/%2e%2e/secret.txt", "/secret.txt", "/blobs/sha256//etc/passwd",
        "/blobs/sha256/secret.txt", "/artifacts/../secret.txt", "/../../etc/passwd",
        "/blobs/sha256/%00", "/artifacts/..%2f/manifest.json", "/docs", "/openapi.json",
    ],
)  # fmt: skip
def test_nothing_else_can_be_asked_for(url: str, target: str) -> None:
    code, body = raw(url, "GET", target)
    assert code == 404
    assert b"not in the manifest" not in body and b"root:" not in body


def test_a_blob_by_its_name_or_with_other_methods_is_refused(url: str, made: Artifact) -> None:
    name, entry = next(iter(made.manifest.files.items()))
    assert raw(url, "GET", f"/blobs/sha256/{name}")[0] == 404
    assert raw(url, "GET", f"/blobs/sha256/{entry.sha256.upper()}")[0] == 404
    for method in ("POST", "PUT", "DELETE"):
        assert raw(url, method, f"/blobs/sha256/{entry.sha256}")[0] == 405


def test_files_that_are_gone_or_another_are_not_here(tmp_path: Path) -> None:
    made = random_artifact(tmp_path / "a")
    names = list(made.manifest.files)
    (made.folder / names[0]).unlink()
    (made.folder / names[1]).write_bytes(b"short")
    with artifact_server([made.folder], "127.0.0.1:0") as url:
        for name in names:
            code = httpx.get(f"{url}/blobs/sha256/{made.manifest.files[name].sha256}").status_code
            assert code == (404 if name in names[:2] else 200)


def test_several_artifacts_by_name_and_fingerprint(tmp_path: Path) -> None:
    one, two = random_artifact(tmp_path / "1"), random_artifact(tmp_path / "2", seed=1)
    with artifact_server([one.folder, two.folder], "127.0.0.1:0") as url:
        settings = PullSettings(store=tmp_path / "store")
        tokenizer = lambda _m: {"tokenizer.json"}  # noqa: E731
        for artifact in (one, two):
            address = f"{url}/artifacts/{artifact.fingerprint[:12]}"
            assert pull([address], tokenizer, settings).manifest == artifact.manifest
        for which in ("", "/artifacts/random", "/artifacts/none"):  # which of the two is not said
            with pytest.raises(UsageError, match=r"random \(.*\), random \("):
                pull([f"{url}{which}"], tokenizer, settings)
    with pytest.raises(UsageError, match="served already"):
        with artifact_server([one.folder, one.folder], "127.0.0.1:0"):
            pass


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    write(tmp_path / "tokens", f"pi {GOOD}\n")
    return tmp_path / "tokens"


def test_strangers_get_nothing(made: Artifact, tokens: Path, tmp_path: Path) -> None:
    blob = next(iter(made.manifest.files.values())).sha256
    with artifact_server(
        [made.folder], "127.0.0.1:0", security=ServerSecurity(tokens=tokens)
    ) as url:
        for path in ("/artifacts", f"/artifacts/{made.fingerprint}/manifest.json",
                     f"/blobs/sha256/{blob}", "/none"):  # fmt: skip
            for given in (None, "Bearer", "Bearer wrongwrongwrongwrong", f"Basic {GOOD}", GOOD):
                answer = httpx.get(url + path, headers={"Authorization": given} if given else {})
                assert answer.status_code == 401
                assert answer.content == b"no valid credentials\n"
        with pytest.raises(Refused, match="--token-file"):
            pull([url], lambda m: set(m.files), PullSettings(store=tmp_path / "s"))
        settings = PullSettings(store=tmp_path / "s", security=ClientSecurity(token=GOOD))
        assert pull([url], lambda m: set(m.files), settings).fetched_bytes > 0


def test_tls_with_certificates_of_both_sides(made: Artifact, tokens: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    ca, cert, key = pem(tmp_path, authority, "localhost")
    _, edge_cert, edge_key = pem(tmp_path, authority, "pi.example")
    other_ca, other_cert, other_key = pem(tmp_path, trustme.CA(), "evil.example")
    security = ServerSecurity(certificate=cert, key=key, client_ca=ca, tokens=tokens)
    with artifact_server([made.folder], "127.0.0.1:0", security=security) as url:
        assert url.startswith("https://")
        address = url.replace("127.0.0.1", "localhost")

        def get(security: ClientSecurity) -> int:
            settings = PullSettings(store=tmp_path / "s", security=security)
            return pull([address], lambda m: {"tokenizer.json"}, settings).files

        mine = ClientSecurity(ca=ca, certificate=edge_cert, key=edge_key, token=GOOD)
        assert get(mine) == 1
        for bad in (
            ClientSecurity(token=GOOD),  # an authority that the system does not know
            ClientSecurity(ca=ca, token=GOOD),  # no certificate
            ClientSecurity(ca=ca, certificate=other_cert, key=other_key, token=GOOD),
            ClientSecurity(ca=other_ca, certificate=edge_cert, key=edge_key, token=GOOD),
        ):
            with pytest.raises(LinkError) as caught:
                get(bad)
            assert "\n" not in str(caught.value)


def test_a_certificate_is_replaced_without_a_restart(made: Artifact, tmp_path: Path) -> None:
    ca, cert, key = pem(tmp_path, trustme.CA(), "localhost")
    (tmp_path / "new").mkdir()
    new_ca, new_cert, new_key = pem(tmp_path / "new", trustme.CA(), "localhost")
    security = ServerSecurity(certificate=cert, key=key)
    with artifact_server([made.folder], "127.0.0.1:0", security=security) as url:
        address = f"{url.replace('127.0.0.1', 'localhost')}/artifacts"

        def get(authority: Path) -> int:
            context = ssl.create_default_context(cafile=str(authority))
            return httpx.get(address, verify=context).status_code

        assert get(ca) == 200
        cert.write_bytes(new_cert.read_bytes())  # and its key is still to come
        assert get(ca) == 200
        key.write_bytes(new_key.read_bytes())
        assert get(new_ca) == 200
        with pytest.raises(httpx.ConnectError):
            get(ca)


def test_where_it_may_listen(made: Artifact, tmp_path: Path) -> None:
    def serve(listen: str, **more: object) -> None:
        with artifact_server([made.folder], listen, **more):  # type: ignore[arg-type]
            pass

    with pytest.raises(UsageError, match=r"--artifacts 0\.0\.0\.0:0 takes connections"):
        serve("0.0.0.0:0")
    serve("0.0.0.0:0", insecure=True)
    serve("[::1]:0")
    with pytest.raises(LinkError, match="is not an address"):
        serve("here")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(LinkError, match="cannot listen on"):
            serve(f"127.0.0.1:{taken.getsockname()[1]}")
    none = tmp_path / "none.pem"
    none.write_bytes(b"-----BEGIN nothing")
    with pytest.raises(UsageError, match="no certificate with its key"):
        serve("127.0.0.1:0", security=ServerSecurity(certificate=none, key=none))
    with pytest.raises(ArtifactError, match="not an artifact"):
        with artifact_server([tmp_path], "127.0.0.1:0"):
            pass


def test_the_listing_is_small_json_of_a_known_form(url: str) -> None:
    text = httpx.get(f"{url}/artifacts").content
    assert len(text) < 1000
    assert json.loads(text)["format"] == "collm-artifacts"
