"""Artifacts that are fetched: what `collm pull` and `collm run ADDRESS` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from collm.cli.progress import byte_bar
from collm.errors import UsageError
from collm.link.address import parse_address, split_url
from collm.link.credentials import ClientSecurity
from collm.link.source_address import is_source
from collm.model.artifact import Artifact
from collm.model.inventory import find
from collm.model.manifest import Manifest
from collm.model.store import Store, default_root
from collm.session.placed import default_placement, exits_in_use, placed_files
from collm.session.pull import Choose, Pulled, PullSettings, pull


def source_addresses(text: str) -> list[str]:
    """Addresses separated by commas. Raises UsageError."""
    addresses = [part.strip() for part in text.split(",")]
    for address in addresses:
        if not is_source(address):
            raise UsageError(
                f"{address[:80]!r}: expected http://HOST:PORT or https://…, where an artifact is "
                "served (collm cloud ARTIFACT --artifacts HOST:PORT)"
            )
    return addresses


def placed_choice(mode: str, placement: int | None, exits: Sequence[int] | None) -> Choose:
    """The files that an edge needs; placement: None for the default of the model."""

    def choose(manifest: Manifest) -> frozenset[str]:
        placed = default_placement(manifest) if placement is None else placement
        return placed_files(manifest, mode, placed, exits)

    return choose


def pull_shown(addresses: Sequence[str], choose: Choose, settings: PullSettings) -> Pulled:
    """`pull` with a bar, and warnings, on standard error."""
    with byte_bar("fetching") as (progress, line):
        return pull(
            addresses,
            choose,
            settings,
            progress=progress,
            warn=lambda text: line(f"warning: {text}"),
        )


def open_artifact(
    text: str,
    mode: str,
    placement: int | None,
    exits: Sequence[int] | None,
    cloud: str | None,
    security: ClientSecurity,
) -> Artifact:
    """The artifact folder `text`, or what an edge needs of the artifact at the addresses `text`.

    What is fetched is kept in the user's store. The token is the cloud's, and goes to no other
    host. Raises UsageError, LinkError.
    """
    if not is_source(text):
        return Artifact(named_folder(text))
    if cloud == "spawn":
        raise UsageError(
            "--cloud spawn needs the whole artifact on this machine: fetch it with collm pull "
            "--all, or name a cloud with --cloud HOST:PORT"
        )
    addresses = source_addresses(text)
    choose = placed_choice(mode, placement, exits)
    clouds = {_host(address) for address in (cloud or "").split(",")}
    if not {split_url(address).hostname for address in addresses} <= clouds:
        security = replace(security, token="")
    pulled = pull_shown(addresses, choose, PullSettings(security=security))
    return Artifact(pulled.folder, fetch=pulled.fetch)


def open_placed(
    text: str,
    mode: str | None,
    layers: int | None,
    exits: Sequence[int] | None,
    cloud: str | None,
    security: ClientSecurity,
) -> tuple[Artifact, int, str]:
    """The artifact, how many of its layers are run here, and the mode. Raises UsageError."""
    if cloud is None and layers is None:
        if is_source(text):
            raise UsageError(
                f"{text[:80]}: without a cloud the whole model is needed here: fetch it with collm "
                "pull --all, or name a --cloud"
            )
        opened = Artifact(named_folder(text))
        return opened, opened.architecture.layers, mode or "verified"
    opened = open_artifact(text, mode or "verified", layers, exits, cloud, security)
    placed = default_placement(opened.manifest) if layers is None else layers
    is_alone = cloud is None and placed < opened.architecture.layers
    chosen = mode or ("standalone" if is_alone else "verified")
    exits_in_use(opened.manifest, chosen, placed, exits)  # or what is wrong with it
    return opened, placed, chosen


def named_folder(text: str) -> Path:
    """The folder `text`, or the one of the artifact that has this name in the user's store.

    Raises UsageError where several have.
    """
    folder = Path(text)
    if "/" in text or folder.exists() or not default_root().is_dir():
        return folder
    found = find(Store(), text)
    if len(found) > 1:
        told = ", ".join(str(one.folder) for one in found)
        raise UsageError(f"{text}: there are several artifacts of that name; name one of {told}")
    return found[0].folder if found else folder


def _host(address: str) -> str:
    try:
        return parse_address(address)[0].strip("[]")
    except ValueError:
        return ""  # told when it is dialled
