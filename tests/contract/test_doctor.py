"""`collm doctor` finds what was planted and says what to do: real files, servers, certificates."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import trustme
from tests.support import random_artifact
from typer.testing import CliRunner

from collm.cli.main import app
from collm.limits import DEFAULT_LIMITS
from collm.link.background import BackgroundServer
from collm.link.credentials import ClientSecurity, ServerSecurity
from collm.link.dialer import Dialer
from collm.link.grpc_server import OPEN
from collm.model.artifact import Artifact
from collm.model.files import sha256_of
from collm.model.manifest import FileEntry
from collm.runtime.stage import Stage
from collm.serve.checks.cloud import check_cloud
from collm.serve.checks.machine import check_threads
from collm.session.above import Above
from collm.session.cloud import CloudService
from collm.session.relay import RelayService
from collm.wire.messages import PROTOCOL_MAJOR, Hello

TOKEN = "a-token-of-the-workshop"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("doctor") / "artifact"
    random_artifact(made)
    return made


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy, to be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "artifact"))


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user with nothing but what the test gives."""
    for name in ("CONFIG_HOME", "CACHE_HOME", "RUNTIME_DIR"):
        place = tmp_path / name.lower()
        place.mkdir(mode=0o700)
        monkeypatch.setenv(f"XDG_{name}", str(place))
    monkeypatch.delenv("COLLM_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)


def doctor(*words: str | Path, before: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """What it found to be wrong; the exit code says whether there was a FAULT."""
    ran = CliRunner().invoke(app, [*before, "doctor", "--json", *map(str, words)])
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
    told = json.loads(ran.stdout)
    assert ran.exit_code == (1 if told["faults"] else 0)
    wrong = [one for one in told["checks"] if one["level"] != "ok"]
    assert all(one["todo"] and "\n" not in one["found"] + one["todo"] for one in wrong)
    return wrong


def only(check: str, *words: str | Path, before: tuple[str, ...] = ()) -> str:
    """The one FAULT, which is of this check."""
    faults = [one for one in doctor(*words, before=before) if one["level"] == "FAULT"]
    assert [one["check"] for one in faults] == [check], faults
    return f"{faults[0]['found']}; {faults[0]['todo']}"


@contextmanager
def cloud(
    folder: Path, layers: range = range(4), security: ServerSecurity = OPEN
) -> Iterator[tuple[str, int]]:
    """A real cloud in this process; its address and port."""
    service = CloudService(Stage(Artifact(folder), layers), DEFAULT_LIMITS)
    try:
        with BackgroundServer(service, security=security) as server:
            yield server.address, server.server.port
    finally:
        service.close()


# ------------------------------------------------------------------------- sound


def test_a_sound_installation_artifact_and_cloud(whole: Path) -> None:
    with cloud(whole) as (address, _):
        ran = CliRunner().invoke(app, ["doctor", str(whole), "--deep", "--cloud", address])
    assert ran.exit_code == 0, ran.stdout
    assert "FAULT" not in ran.stdout
    assert "two rows      layers 0 to 0: the same to the last bit" in ran.stdout
    assert "kernels       rows are the same to the last bit" in ran.stdout
    assert "session       the cloud has the same model" in ran.stdout
    # Exits of a random model are not trained; of all else nothing is to be said.
    assert "warning exits         untrained: 1, 2; collm tune trains them\n" in ran.stdout
    assert ran.stdout.endswith("\n1 warning\n")


# ---------------------------------------------------------------------- artifact


def test_a_flipped_bit(folder: Path) -> None:
    path = folder / "blocks/001-002.data"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert not [one for one in doctor(folder) if one["level"] == "FAULT"]  # sizes are right
    said = only("files", folder, "--deep")
    assert said.startswith("damaged: blocks/001-002.data; build it again")


def test_a_missing_block(folder: Path) -> None:
    (folder / "blocks/002-004.data").unlink()
    assert only("files", folder).startswith("missing: blocks/002-004.data; build or pull")
    # A device with two layers does not need it.
    assert not [one for one in doctor(folder, "--placement", "2") if one["level"] == "FAULT"]
    assert "placement 4 in mode verified needs blocks/002-004.data" in only(
        "files", folder, "--placement", "4"
    )


def test_an_exit_of_another_model(folder: Path, tmp_path: Path) -> None:
    other = random_artifact(tmp_path / "other", hidden_size=128)
    path = folder / "exits/other.norm.f32"
    path.parent.mkdir()
    shutil.copy(other.folder / "final_norm.f32", path)
    manifest = Artifact(folder).manifest
    entry = FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)
    spoilt = replace(
        manifest,
        exits=(replace(manifest.exits[0], norm="exits/other.norm.f32"), *manifest.exits[1:]),
        files={**manifest.files, "exits/other.norm.f32": entry},
    )
    spoilt.write(folder)
    said = only("exits", folder, "--deep")
    assert "exit 1: exits/other.norm.f32: made for a hidden size of 128, the model's is 64" in said
    assert "collm add-exit with one made for this model" in said


def test_an_edited_manifest_and_no_artifact(folder: Path, tmp_path: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"rms_norm_eps"', '"rms_norm_epsilon"'))
    path.write_text(path.read_text().replace('"eos_token": "<|im_end|>"', '"eos_token": "<|x|>"'))
    assert "manifest.json" in only("artifact", folder)
    assert "not an artifact" in only("artifact", tmp_path)


def test_a_cut_that_there_is_not(whole: Path) -> None:
    faults = doctor(whole, "--placement", "3")
    assert any("placement 3: expected one of 0, 1, 2, 4" in one["found"] for one in faults)


# ------------------------------------------------------------------- installation


def test_another_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "1.33.1" if name == "onnxruntime" else real(name)
    )
    said = only("onnxruntime")
    assert said.startswith("1.33.1: exactness was measured with 1.32 only; ")
    assert "pip install 'onnxruntime>=1.32,<1.33'" in said


def test_kernels_that_tell_rows_apart(monkeypatch: pytest.MonkeyPatch, whole: Path) -> None:
    monkeypatch.setattr("collm.runtime.self_check.kernel_difference", lambda: 0.25)
    monkeypatch.setattr("collm.runtime.self_check.block_difference", lambda _: (range(1), 0.5))
    faults = {one["check"]: one["found"] for one in doctor(whole) if one["level"] == "FAULT"}
    assert faults == {
        "kernels": "twelve rows at once and two at a time differ by 0.25",
        "two rows": "layers 0 to 0: twelve rows at once and two at a time differ by 0.5",
    }


def test_threads_beyond_the_cores_and_the_quota(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    assert f"--threads {cores}" in only("threads", "--threads", cores + 62)
    # A container that is given half a core's time.
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("50000 100000")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (found,) = check_threads(2, tmp_path)
    assert found.level == "FAULT"
    assert "a quota of 0.5 cores' time" in found.found
    assert found.todo == "--threads 1"


def test_a_store_that_cannot_be_written_or_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "nothing can be written" in only("store", "--store", "/proc/collm-store")
    (tmp_path / "file").touch()
    assert "--store FOLDER" in only("store", "--store", tmp_path / "file")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 5))  # type: ignore[attr-defined]
    assert "0.0 GB free; make room (collm list, collm rm)" in only("store")


def test_an_unknown_key_in_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "collm.toml"
    file.write_text("[run]\nmax_token = 3\n")
    said = only("config")
    assert "collm.toml: [run] max_token: no option of that name; did you mean max-tokens?" in said
    file.unlink()
    other = tmp_path / "other.toml"
    other.write_text("[cloud]\nkv-memory = 4\nmax-sessions = 0\n")
    assert "[cloud] max-sessions:" in only("config", before=("--config", str(other)))


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        (found,) = doctor("--listen", f"127.0.0.1:{held.getsockname()[1]}")
    assert found["level"] == "warning"
    assert f"(pid {os.getpid()})" in found["found"]


# ------------------------------------------------------------------------- cloud


def test_a_cloud_that_is_down_and_a_name_that_is_none(whole: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    said = only("cloud", whole, "--cloud", f"127.0.0.1:{port}")
    assert said.startswith(f"127.0.0.1:{port}: Connection refused; is it started, on that port")
    assert "no such name" in only("cloud", "--cloud", "cloud.invalid:50051")
    assert "expected HOST:PORT" in only("cloud", "--cloud", "http://here")


def test_a_cloud_with_another_model(whole: Path, tmp_path: Path) -> None:
    other = random_artifact(tmp_path / "other", seed=1)
    with cloud(other.folder) as (address, _):
        said = only("fingerprint", whole, "--cloud", address)
    ours, theirs = Artifact(whole).fingerprint[:12], other.fingerprint[:12]
    assert f"this artifact is {ours}…, the cloud's is {theirs}…: not the same model" in said
    assert "collm pull the cloud's artifact" in said


def test_a_cloud_of_another_version(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def older(software: str, fingerprint: str, cut: int, wire_format: str) -> Hello:
        return Hello(
            protocol_major=PROTOCOL_MAJOR + 1,
            protocol_minor=0,
            fingerprint=fingerprint,
            cut=cut,
            wire_format=wire_format,
            software=software,
        )

    monkeypatch.setattr("collm.session.asking.hello_of", older)
    with cloud(whole) as (address, _):
        said = only("version", whole, "--cloud", address)
    assert (
        f"the client speaks protocol {PROTOCOL_MAJOR + 1}.0, this cloud {PROTOCOL_MAJOR}." in said
    )
    assert "pip install --upgrade collm, on the older side" in said


def test_a_cloud_that_cannot_begin_at_our_cut(whole: Path) -> None:
    with cloud(whole, range(2, 4)) as (address, _):
        said = only("cut", whole, "--cloud", address, "--placement", "1")
        assert "start at layer 1, this cloud can start at 2" in said
        assert not [
            one
            for one in doctor(whole, "--cloud", address, "--placement", "2")
            if one["level"] == "FAULT"
        ]


def test_an_edge_server_and_the_cloud_above_it(whole: Path) -> None:
    """What lies behind the server is looked at, too; the server says how it is."""
    artifact = Artifact(whole)
    upper = CloudService(Stage(artifact, range(4)), DEFAULT_LIMITS)
    stage = Stage(artifact, range(1, 2))
    with BackgroundServer(upper) as above:
        lower = RelayService(
            stage, DEFAULT_LIMITS, Above(stage, DEFAULT_LIMITS, Dialer([above.address]))
        )
        with BackgroundServer(lower) as server:
            words = (whole, "--cloud", server.address, "--placement", "1")
            assert lower.above.check()
            ran = CliRunner().invoke(app, ["doctor", *map(str, words)])
            reaches = f"tiers         the edge server {server.address} reaches its cloud"
            assert f"{reaches} {above.address} in " in ran.stdout
            assert "session       the cloud has the same model" in ran.stdout
            above.close(grace=0)
            assert not lower.above.check()
            said = only("tiers", *words)
            assert said.startswith(
                f"the edge server {server.address} does not reach its cloud {above.address}: "
            )
            assert "start that one" in said
        lower.close()
    upper.close()


def test_a_program_that_is_no_cloud() -> None:
    with answering({}) as url:
        limits = replace(DEFAULT_LIMITS, connect_seconds=0.5)
        address = url.removeprefix("http://")
        found = list(check_cloud(address, ClientSecurity(), None, placement=None, limits=limits))
    assert [one.level for one in found] == ["ok", "FAULT"]
    assert found[1].todo == "is it a collm cloud, and not another program?"


# --------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def secured(
    folder: Path, authority: trustme.CA, *names: str, **more: Any
) -> tuple[Path, ServerSecurity]:
    """The authority's file, and what a cloud with such a certificate is given."""
    made = authority.issue_cert(*names, **more)
    ca, cert, key = (folder / f"{what}.pem" for what in ("ca", "cert", "key"))
    authority.cert_pem.write_to_path(str(ca))
    made.cert_chain_pems[0].write_to_path(str(cert))
    made.private_key_pem.write_to_path(str(key))
    return ca, ServerSecurity(certificate=cert, key=key)


def test_tls_as_it_should_be_and_its_absence(
    whole: Path, tmp_path: Path, authority: trustme.CA
) -> None:
    ca, security = secured(tmp_path, authority, "localhost")
    with cloud(whole, security=security) as (_, port):
        address = f"localhost:{port}"
        found = doctor(whole, "--cloud", address, "--ca", ca)
        assert [one["check"] for one in found] == ["exits"]
        said = only("TLS", whole, "--cloud", address)
        assert "speaks TLS; give --ca FILE" in said
    with cloud(whole) as (_, port):
        said = only("TLS", whole, "--cloud", f"localhost:{port}", "--ca", ca)
        assert "speaks no TLS; start it with --tls-cert and --tls-key, or leave --ca out" in said


def test_an_unknown_authority(whole: Path, tmp_path: Path, authority: trustme.CA) -> None:
    _, security = secured(tmp_path, authority, "localhost")
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))
    with cloud(whole, security=security) as (_, port):
        said = only("TLS", "--cloud", f"localhost:{port}", "--ca", stranger)
    assert f"not signed by the authority in {stranger}" in said


@pytest.mark.parametrize(
    ("days", "said"),
    [
        ((-30, -1), "has expired (valid "),
        ((1, 30), "is not valid yet (valid "),
    ],
)
def test_certificates_out_of_their_time(
    whole: Path, tmp_path: Path, authority: trustme.CA, days: tuple[int, int], said: str
) -> None:
    first, last = (datetime.now(UTC) + timedelta(days=one) for one in days)
    ca, security = secured(tmp_path, authority, "localhost", not_before=first, not_after=last)
    with cloud(whole, security=security) as (_, port):
        told = only("TLS", "--cloud", f"localhost:{port}", "--ca", ca)
    assert said in told
    assert "this machine's clock says" in told
    assert "set" in told and "clock" in told.partition(";")[2]


def test_a_certificate_that_expires_soon(
    whole: Path, tmp_path: Path, authority: trustme.CA
) -> None:
    soon = datetime.now(UTC) + timedelta(days=3)
    ca, security = secured(tmp_path, authority, "localhost", not_after=soon)
    with cloud(whole, security=security) as (_, port):
        (found,) = doctor("--cloud", f"localhost:{port}", "--ca", ca)
    assert (found["level"], found["check"]) == ("warning", "TLS")


def test_a_name_that_the_certificate_has_not(
    whole: Path, tmp_path: Path, authority: trustme.CA
) -> None:
    ca, security = secured(tmp_path, authority, "cloud.example")
    with cloud(whole, security=security) as (_, port):
        said = only("TLS", "--cloud", f"localhost:{port}", "--ca", ca)
    assert "the certificate is not for the name localhost" in said


def test_credentials(whole: Path, tmp_path: Path, authority: trustme.CA) -> None:
    ca, security = secured(tmp_path, authority, "localhost")
    tokens, wrong, right = (tmp_path / name for name in ("tokens", "wrong", "right"))
    for path, text in ((tokens, f"pi {TOKEN}\n"), (wrong, "x" * 20), (right, TOKEN)):
        path.write_text(text)
        path.chmod(0o600)
    with cloud(whole, security=replace(security, tokens=tokens)) as (_, port):
        words = (whole, "--cloud", f"localhost:{port}", "--ca", ca)
        assert "no token was given" in only("credentials", *words)
        said = only("credentials", *words, "--token-file", wrong)
        assert "the token was not taken" in said
        assert "x" * 20 not in said
        assert [one["check"] for one in doctor(*words, "--token-file", right)] == ["exits"]
    with cloud(whole, security=replace(security, client_ca=ca)) as (_, port):
        said = only("TLS", whole, "--cloud", f"localhost:{port}", "--ca", ca)
        assert "it asks edges for a certificate, and none was given" in said


# ----------------------------------------------------------------- HTTP and clock


@contextmanager
def answering(pages: dict[str, str], skew: timedelta = timedelta()) -> Iterator[str]:
    """An HTTP server whose clock is off by `skew`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = pages.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or "")))
            self.end_headers()
            self.wfile.write((body or "").encode())

        def date_time_string(self, timestamp: Any = None) -> str:
            return format_datetime(datetime.now(UTC) + skew, usegmt=True)

        def log_message(self, format: str, *args: Any) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_clock_that_is_wrong() -> None:
    pages = {"/artifacts": "{}"}
    with answering(pages, timedelta(hours=2)) as url:
        said = only("clock", "--artifacts", url)
        assert said.startswith(("this clock is 7,200 s behind", "this clock is 7,199 s behind"))
        assert "timedatectl set-ntp true" in said
    with answering(pages, timedelta(seconds=-90)) as url:
        (found,) = doctor("--artifacts", url)
        assert (found["level"], found["check"]) == ("warning", "clock")
    with answering(pages) as url:
        assert doctor("--artifacts", url) == []


def test_servers() -> None:
    models = {"/healthz": "ok", "/v1/models": '{"data": [{"id": "tiny"}]}'}
    with answering(models) as url:
        assert doctor("--server", url) == []
        assert doctor("--server", url + "/") == []
    with answering({"/healthz": "ok", "/v1/models": "<html>"}) as url:
        assert "/v1/models is no list of models" in only("API", "--server", url)
    assert "Connection refused" in only("server", "--server", url)
    for wrong in ("127.0.0.1", "http://[", "http://[::1", "http://a:99999"):
        assert "expected a URL such as" in only("server", "--server", wrong)
