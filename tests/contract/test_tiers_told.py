"""Who runs the model above a device, and how they are: edge servers tell it downwards."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.contract.link_services import until
from tests.contract.tiers import LIMITS, Host, Tiers
from tests.openai_server import ask, serving_of
from tests.support import random_artifact

from collm.limits import DEFAULT_LIMITS
from collm.link.dialer import Dialer
from collm.link.probe import ask as heartbeat
from collm.model.artifact import Artifact
from collm.runtime.stage import Stage
from collm.serve.cloud_health import HealthWatch
from collm.serve.openai.serving import Serving
from collm.serve.spawn import spawned_cloud
from collm.session.above import Above
from collm.session.cloud import CloudConversation
from collm.session.probing import look
from collm.session.relay import RelayService
from collm.wire.messages import Heartbeat, Pong
from collm.wire.tiers import Tier


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return random_artifact(tmp_path_factory.mktemp("tiny") / "artifact", cuts=(1, 2, 3))


@pytest.fixture
def tiers(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tiers]:
    """Over sockets; the server has looked for its cloud once."""
    monkeypatch.setattr("collm.serve.cloud_health._EVERY_SECONDS", 0.02)
    with Tiers(artifact, "grpc") as made:
        assert made.relay().above.check()
        yield made


def older(monkeypatch: pytest.MonkeyPatch, *services: object) -> None:
    """These are of 1.5: they pass over what they do not know of a heartbeat."""
    pong = CloudConversation._pong

    def bare(self: CloudConversation, heartbeat: Heartbeat) -> Iterator[bytes]:
        is_old = self._service in services
        yield from pong(self, replace(heartbeat, wants_tiers=False) if is_old else heartbeat)

    monkeypatch.setattr(CloudConversation, "_pong", bare)


def status(serving: Serving) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = ask(serving, "/collm/status").json()["tiers"]
    return told


def brief(tiers: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    return [tuple(one[key] for key in ("role", "address", "first", "last", "ok")) for one in tiers]


DEVICE = ("device", "this device", 0, 1, True)


def test_all_tiers_with_their_layers_and_one_that_goes(tiers: Tiers) -> None:
    above = tiers.relay().above
    with serving_of(tiers.artifact, tiers.dialer("server0"), placement=1) as serving:
        all_well = [
            DEVICE,
            ("edge server", "server0", 1, 3, True),
            ("cloud", "cloud", 3, 4, True),
        ]
        assert until(lambda: brief(status(serving)) == all_well)
        server, cloud = status(serving)[1:]
        assert server["rtt_ms"] > 0 and cloud["rtt_ms"] > 0
        assert (server["sessions"], cloud["sessions"]) == (0, 0)
        assert ask(serving, "/readyz").status_code == 200

        tiers.cloud.kill()
        assert not above.check()
        assert until(lambda: not status(serving)[2]["ok"])
        _, server, cloud = status(serving)
        assert server["ok"] and server["rtt_ms"] > 0 and server["error"] == ""
        assert (cloud["rtt_ms"], cloud["sessions"], cloud["error"]) == (None, None, "killed")
        assert ask(serving, "/readyz").status_code == 200  # the exits can begin

        tiers.hosts["server0"].kill()
        assert until(lambda: not status(serving)[1]["ok"])
        _, server, cloud = status(serving)
        assert (server["role"], server["error"]) == ("edge server", "killed")
        assert cloud["error"] == "not known while the edge server below it is away"

        tiers.cloud.is_up = tiers.hosts["server0"].is_up = True
        assert above.check()
        assert until(lambda: brief(status(serving)) == all_well)


def test_without_exits_nothing_can_begin_while_the_cloud_above_is_away(tiers: Tiers) -> None:
    tiers.cloud.kill()
    assert not tiers.relay().above.check()
    with serving_of(
        tiers.artifact, tiers.dialer("server0"), placement=1, settings={"begin_offline": False}
    ) as serving:
        assert until(lambda: len(status(serving)) == 3)
        response = ask(serving, "/readyz")
    assert response.status_code == 503
    assert response.json()["error"]["message"] == "the cloud cloud is away: killed"


def test_a_cloud_of_before_tells_of_itself_alone(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    older(monkeypatch, tiers.cloud.service, tiers.relay())
    for name, first, last in (("cloud", 1, 4), ("server0", 1, 4)):
        with serving_of(tiers.artifact, tiers.dialer(name), placement=1) as serving:
            assert until(lambda: status(serving)[1]["ok"])
            told = status(serving)
        assert brief(told) == [DEVICE, ("cloud", name, first, last, True)]
        assert told[1]["sessions"] == 0 and told[1]["rtt_ms"] > 0


def test_a_server_whose_cloud_is_of_before_tells_that_it_is_there(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    older(monkeypatch, tiers.cloud.service)
    assert tiers.relay().above.check()
    server, cloud = look(tiers.dialer("server0"), LIMITS)
    assert (server.role, server.first, server.last) == ("edge server", 1, 3)
    assert (cloud.role, cloud.address, cloud.ok, cloud.sessions) == ("cloud", "cloud", True, None)
    assert (cloud.first, cloud.last) == (3, 4) and cloud.round_trip


def test_who_does_not_ask_is_not_told(tiers: Tiers) -> None:
    """An edge of 1.5 gets the answer that it always got, as long as the server can serve."""
    with tiers.hosts["server0"].connect() as link:
        _, pong = heartbeat(link, LIMITS, 3.0, Heartbeat(nonce=0))
    assert pong == Pong(nonce=pong.nonce)


def test_server_above_server_above_cloud(tiers: Tiers) -> None:
    """What the middle one has seen of the cloud comes through the lowest; so does its fault."""
    stage = Stage(tiers.artifact, range(1), limits=LIMITS)
    lowest = RelayService(stage, LIMITS, Above(stage, LIMITS, tiers.dialer("server0")))
    tiers._add("lowest", Host(lowest, "memory", 4))
    dialer = tiers.dialer("lowest")
    assert lowest.above.check()
    told = [(one.role, one.address, one.ok) for one in look(dialer, LIMITS)]
    assert told == [
        ("edge server", "lowest", True), ("edge server", "server0", True), ("cloud", "cloud", True)
    ]  # fmt: skip
    tiers.cloud.kill()
    assert not tiers.relay().above.check() and not lowest.above.check()
    assert [one.ok for one in look(dialer, LIMITS)] == [True, True, False]
    assert str(lowest.above.fault) == "the cloud cloud: killed"
    tiers.cloud.is_up = True
    assert tiers.relay().above.check() and lowest.above.check()
    assert all(one.ok for one in look(dialer, LIMITS))


def test_a_server_that_is_its_own_cloud_does_not_grow(tiers: Tiers) -> None:
    tiers.relay().above.dialer = tiers.dialer("server0")
    for _ in range(2 * LIMITS.max_tiers):
        tiers.relay().above.check()
    assert len(look(tiers.dialer("server0"), LIMITS)) == LIMITS.max_tiers


def test_of_several_the_one_in_use_is_named(tiers: Tiers) -> None:
    tiers.hosts["server0"].kill()
    with HealthWatch(tiers.dialer("server0", "cloud"), LIMITS) as watch:
        assert until(lambda: watch.latest.ok)
        assert watch.latest.tiers[0].address == "cloud"
        tiers.cloud.kill()
        assert until(lambda: not watch.latest.ok)
        assert watch.latest.tiers[0].address == "server0, cloud"


def test_a_watch_that_is_never_answered_knows_nobody(tiers: Tiers) -> None:
    tiers.hosts["server0"].kill()
    with HealthWatch(tiers.dialer("server0"), LIMITS) as watch:
        latest = watch.wait(5)
    assert latest.tiers == (Tier(address="server0", ok=False, error="killed"),)
    assert latest.fault == "the cloud server0 is away: killed"


def test_processes_and_a_killed_cloud(artifact: Artifact) -> None:
    """The watch of a real edge server sees it within seconds, and the device hears of it."""
    folder: Path = artifact.folder

    def spawned(*words: str) -> Any:
        return spawned_cloud(folder, threads=1, limits=DEFAULT_LIMITS, arguments=words)

    with (
        spawned() as cloud,
        spawned("--blocks", "1:3", "--upstream", cloud.address) as server,
        serving_of(artifact, Dialer([server.address]), placement=1) as serving,
    ):
        assert until(lambda: len(status(serving)) == 3, 20)
        assert brief(status(serving)) == [
            DEVICE,
            ("edge server", server.address, 1, 3, True),
            ("cloud", cloud.address, 3, 4, True),
        ]
        os.kill(cloud.pid, signal.SIGKILL)
        assert until(lambda: not status(serving)[2]["ok"], 20)
        assert status(serving)[1]["ok"]
        assert cloud.address in status(serving)[2]["error"]
