"""What `collm ps` and `collm top` know: processes that register, and the numbers they publish."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from tests.support import random_artifact
from typer.testing import CliRunner

from collm import metrics
from collm.cli.main import app
from collm.cli.ps import duration
from collm.cli.top import Watched, looks
from collm.errors import ProtocolError, Refused, Unreachable, UsageError
from collm.serve.metrics import metrics_server
from collm.serve.registry import registered, registry_folder, running
from collm.serve.scrape import Histogram as Read
from collm.serve.scrape import Source, parse_samples, read_samples
from collm.serve.view import View, view


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where processes of this test register: a path short enough for a socket."""
    with tempfile.TemporaryDirectory() as place:
        monkeypatch.setenv("XDG_RUNTIME_DIR", place)
        yield registry_folder()


def test_a_process_is_listed_while_it_runs(folder: Path, tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "model")
    layers = range(1, 4)
    with registered(kind="cloud", address="127.0.0.1:7", artifact=artifact, layers=layers):
        (one,) = running()
        assert (one.kind, one.pid, one.model) == ("cloud", os.getpid(), "random")
        assert (one.first, one.last, one.layers) == (1, 4, 4)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())
        told = CliRunner().invoke(app, ["ps"]).stdout
        assert "127.0.0.1:7" in told and "1 to 3 of 4" in told
        (record,) = json.loads(CliRunner().invoke(app, ["ps", "--json"]).stdout)
        assert record["memory_bytes"] > 10**6
        assert record["sessions"] == metrics.SESSIONS._value.get()
        assert CliRunner().invoke(app, ["ps", "-q"]).stdout == "127.0.0.1:7\n"
    assert running() == []
    assert list(folder.iterdir()) == []
    assert "nothing of CoLLM runs here" in CliRunner().invoke(app, ["ps"]).stdout


def test_what_dead_processes_left_is_cleaned(folder: Path) -> None:
    code = (
        "from collm.serve.registry import registered\nimport time\n"
        "with registered(kind='cloud', address='a:1'): print('here', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        (one,) = running()
        assert one.pid == process.pid
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(list(folder.iterdir())) == 2  # it could not clean up
        assert running() == []
        assert list(folder.iterdir()) == []
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    # The same number, but another process: it started at another time.
    with registered(kind="serve", address="http://127.0.0.1:8"):
        (path,) = folder.glob("*.json")
        data = json.loads(path.read_text())
        other = folder / "other.json"
        other.write_text(json.dumps(data | {"started": data["started"] - 60}))
        assert len(running()) == 1
        assert not other.exists()


def test_files_of_other_make_are_not_believed(folder: Path) -> None:
    with registered(kind="cloud", address="a:1"):
        (path,) = folder.glob("*.json")
        data = json.loads(path.read_text())
        for wrong in ({"address": 3}, {"address": "a\x1b[31m"}, {"pid": "1"}):
            (folder / "x.json").write_text(json.dumps(data | wrong))
            assert len(running()) == 1
        for text in ("", "[]", "{", "null"):
            (folder / "x.json").write_text(text)
            assert len(running()) == 1


def test_another_version_is_listed_and_nothing_of_the_living_removed(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    with registered(kind="cloud", address="127.0.0.1:7"):
        (path,) = folder.glob("*.json")
        socket = path.with_suffix(".sock")
        data = json.loads(path.read_text())
        path.write_text(json.dumps(data | {"colour": "blue", "version": "9.9"}))
        assert "127.0.0.1:7" in CliRunner().invoke(app, ["ps"]).stdout
        path.write_text(json.dumps({"in": "another form"}))
        (folder / f"{gone.pid}-abcdef.json").write_text("of the dead")
        assert "nothing of CoLLM runs here" in CliRunner().invoke(app, ["ps"]).stdout
        assert path.exists() and socket.exists()
        assert not (folder / f"{gone.pid}-abcdef.json").exists()


def test_a_machine_without_a_place_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("collm.serve.registry.registry_folder", lambda: tmp_path / "file" / "x")
    with registered(kind="cloud", address="a:1"):
        assert running() == []
    assert "collm ps will not know of this process" in caplog.text


# ----------------------------------------------------------------------- metrics


def page(tokens: float, turns: list[float], sources: dict[str, float]) -> str:
    """A page as Prometheus reads it."""
    registry = CollectorRegistry()
    Gauge("collm_sessions", "s", registry=registry).set(3)
    Gauge("collm_kv_bytes", "s", registry=registry).set(25)
    Gauge("collm_kv_budget_bytes", "s", registry=registry).set(100)
    Counter("collm_tokens", "t", registry=registry).inc(tokens)
    made = Counter("collm_answered", "a", ["by"], registry=registry)
    for source, count in sources.items():
        made.labels(source).inc(count)
    refused = Counter("collm_refusals", "r", ["code"], registry=registry)
    refused.labels("busy").inc(2)
    buckets = (0.01, 0.1, 1.0)
    took = Histogram("collm_turn_seconds", "t", ["message"], buckets=buckets, registry=registry)
    for seconds in turns:
        took.labels("verify").observe(seconds)
    Gauge("other_thing", "not ours", registry=registry).set(9)
    return generate_latest(registry).decode()


def test_figures_a_second_and_of_the_time_between_two_looks() -> None:
    before = parse_samples(page(100, [0.5] * 100, {"here": 90, "exit@5": 10}))
    now = parse_samples(page(130, [0.5] * 100 + [0.05] * 10, {"here": 99, "exit@5": 31}))
    seen = view(now, before, 2.0)
    assert (seen.tokens_rate, seen.tokens) == (15.0, 130)
    assert seen.shares == {"exit@5": 0.7, "here": 0.3}
    assert (seen.kv_bytes, seen.kv_budget, seen.sessions) == (25, 100, 3)
    assert seen.refusals == {"busy": 2}
    assert seen.turn_p50 == pytest.approx(0.055)
    assert seen.turn_p95 == pytest.approx(0.0955)
    first = view(now)
    assert first.tokens_rate is None
    assert first.turn_p50 is not None and 0.1 < first.turn_p50 < 1
    # A process that was started anew counts from nought.
    assert view(before, now, 2.0).tokens_rate == 50.0
    assert first.question_p50 is None


def test_quantiles_as_prometheus_has_them() -> None:
    found = Read(((0.1, 5.0), (0.5, 10.0), (float("inf"), 20.0)), 3.0)
    assert found.quantile(0.25) == pytest.approx(0.1)
    assert found.quantile(0.5) == pytest.approx(0.5)
    assert found.quantile(0.9) == 0.5  # beyond the last bound
    assert Read().quantile(0.5) is None


def test_pages_that_are_none() -> None:
    with pytest.raises(ProtocolError, match="no metrics of CoLLM there"):
        parse_samples("# HELP other x\nother 3\n", "a:1")
    with pytest.raises(ProtocolError, match="a:1: no metrics"):
        parse_samples("<html> { </html>", "a:1")


def test_metrics_over_tcp_want_their_token(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("pi a-token-of-some-length\n")
    tokens.chmod(0o600)
    with metrics_server("127.0.0.1:0", tokens=tokens) as where:
        with pytest.raises(Refused, match="give --token-file"):
            read_samples(Source(where))
        found = read_samples(Source(where, "a-token-of-some-length"))
        assert found.total("collm_sessions") is not None
        key = tmp_path / "key"
        key.write_text("a-token-of-some-length\n")
        ran = CliRunner().invoke(
            app, ["top", where, "--once", "--every", "0.1", "--json", "--token-file", str(key)]
        )
        assert json.loads(ran.stdout)["tokens_rate"] == 0.0
    with pytest.raises(Unreachable, match="nobody answers"):
        read_samples(Source(where))
    for wrong in ("http://", "http://[", "[::1", "a:99999", "ftp://a"):
        ran = CliRunner().invoke(app, ["top", wrong, "--once"])
        assert isinstance(ran.exception, UsageError)
        assert f"{wrong}': expected HOST:PORT, or a URL such as" in str(ran.exception)


def test_top_finds_what_runs_here_and_outlives_it() -> None:
    with pytest.raises(UsageError, match="nothing of CoLLM runs here"):
        Watched(None, "", None)
    with registered(kind="cloud", address="127.0.0.1:7"):
        watched = Watched(None, "", None)
        assert watched.name == "cloud 127.0.0.1:7"
        seen = looks(watched)
        assert isinstance(next(seen), View)
        assert isinstance(next(seen), View)
        with registered(kind="serve", address="http://127.0.0.1:8"):
            with pytest.raises(UsageError, match=r"several run here: .* name one"):
                Watched(None, "", None)
    said = next(seen)
    assert isinstance(said, str) and "nobody answers" in said
    with registered(kind="cloud", address="127.0.0.1:7"):
        assert isinstance(next(seen), View)  # it is back


def test_times_for_people() -> None:
    told = [duration(seconds) for seconds in (5, 65, 3600 * 3 + 1200, 86_400 * 5 + 7200)]
    assert told == ["5 s", "1 min", "3 h 20 min", "5 d 2 h"]
    assert psutil.Process().create_time() < time.time()
