"""`collm profile` and `collm probe`: the device, the link, the cloud."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from collm.cli.options import JsonOption
from collm.cli.progress import counting_bar
from collm.cli.prompts import RECORDED, prompt_ids, read_prompts, record_ids
from collm.cli.security import (
    CaOption,
    CertOption,
    KeyOption,
    TokenFileOption,
    check_token_stays_secret,
    client_security,
)
from collm.cli.show import megabytes, plain_table
from collm.errors import UsageError
from collm.link.dialer import Dialer
from collm.model.artifact import Artifact
from collm.policy.profile_json import device_to_json
from collm.policy.profiles import Acceptance, DeviceProfile, LinkProfile
from collm.session.planning import acceptance, device_profile
from collm.session.probing import Probed, probe

RECORDED_TOKENS = 40


def profile_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure again.")] = False,
    budget: Annotated[
        float, typer.Option(min=0.1, max=600, help="Seconds of measuring, loading left out.")
    ] = 10.0,
    exits: Annotated[
        bool | None,
        typer.Option(
            "--exits/--no-exits",
            help="Record how often exits are right, with the whole model; default: if it fits.",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help='With --exits: also these, JSONL of {"prompt": …} or {"messages": […]}.'),
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, max=4096, help="With --exits: tokens of each answer.")
    ] = RECORDED_TOKENS,
    as_json: JsonOption = False,
) -> None:
    """Measure this device with an artifact, and keep what was found for plans."""
    opened = Artifact(artifact)
    with counting_bar("loading", timed=False) as progress:
        device = device_profile(opened, budget=budget, refresh=refresh, progress=progress)
        said: Acceptance | None = None
        missing = ""
        if exits is not False:
            try:
                said = acceptance(
                    opened,
                    recorded_prompts(opened, prompts),
                    tokens=tokens,
                    threads=device.best_threads,
                    refresh=refresh or prompts is not None,
                    progress=progress,
                )
            except UsageError as error:
                if exits:
                    raise
                missing = str(error)
    if as_json:
        report = {"device": json.loads(device_to_json(device)), "exits": exits_json(said)}
        typer.echo(json.dumps(report))
        return
    _show_device(device)
    _show_exits(said, missing)


def probe_command(
    address: Annotated[str, typer.Argument(help="HOST:PORT of a cloud.")],
    count: Annotated[int, typer.Option(min=1, max=1000, help="Round trips.")] = 8,
    budget: Annotated[
        float, typer.Option(min=0.0, max=60.0, help="Seconds of measuring the link.")
    ] = 2.0,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Also let the cloud write a few tokens.")
    ] = False,
    ca: CaOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the link to a cloud, and ask the cloud what it takes."""
    security = client_security(ca, cert, key, token_file)
    check_token_stays_secret([address], security)
    found = probe(Dialer([address], security=security), count=count, budget=budget, tokens=tokens)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    console = Console(highlight=False)
    console.print(link_line(found.link), soft_wrap=True)
    console.print(f"connecting {_ms(found.link.connect)}", soft_wrap=True)
    _show_cloud(console, found)


def recorded_prompts(artifact: Artifact, extra: Path | None) -> list[list[int]]:
    """The built-in prompts and the user's own, as ids."""
    tokenizer = artifact.tokenizer()
    made = [prompt_ids(tokenizer, prompt, raw=False) for prompt in RECORDED]
    if extra is not None:
        made += [record_ids(tokenizer, record, raw=False) for record in read_prompts(extra)]
    return made


def exits_json(said: Acceptance | None) -> dict[str, object] | None:
    """How often each exit is right, without the rows."""
    if said is None:
        return None
    return {
        "tokens": said.tokens,
        "right": dict(zip(said.cuts, said.right.mean(axis=0).tolist(), strict=True)),
        "paths": {name: float(one.right.mean()) for name, one in said.paths.items()},
        "wires": {name: dict(at) for name, at in said.wires.items()},
    }


def link_line(link: LinkProfile) -> str:
    """A link in words."""
    return (
        f"round trip {_ms(link.round_trip)} (jitter {_ms(link.jitter)}), "
        f"{_rate(link.up_bits)} up, {_rate(link.down_bits)} down"
    )


def _show_device(device: DeviceProfile) -> None:
    console = Console(highlight=False)
    console.print(f"{device.hardware}; {megabytes(device.memory_bytes)} to use", soft_wrap=True)
    table = plain_table(
        "Milliseconds",
        ["part", *(f"1 row, {c.threads} thr." for c in device.costs), "32 rows", "size"],
    )
    best = device.with_threads(device.best_threads)
    for index, size in enumerate(device.block_bytes):
        name = f"layers {device.bounds[index]} to {device.bounds[index + 1] - 1}"
        ones = [f"{1e3 * costs.blocks[index].at(1):.2f}" for costs in device.costs]
        table.add_row(name, *ones, f"{1e3 * best.blocks[index].at(32):.1f}", megabytes(size))
    for cut, size in device.exit_bytes.items():
        ones = [f"{1e3 * costs.exits[cut].at(1):.2f}" for costs in device.costs]
        more = f"{1e3 * best.exits[cut].at(32):.1f}"
        table.add_row(f"exit at {cut}", *ones, more, megabytes(size))
    for name, path in device.paths.items():
        ones = [f"{1e3 * costs.paths[name].rows.at(1):.2f}" for costs in device.costs]
        more = f"{1e3 * best.paths[name].rows.at(32):.1f}"
        table.add_row(f"path {name}", *ones, more, megabytes(path.bytes))
    heads = [f"{1e3 * costs.head.at(1):.2f}" for costs in device.costs]
    table.add_row("head", *heads, f"{1e3 * best.head.at(32):.1f}", "")
    console.print(table)
    paying = f"{device.best_threads} of {device.cores}"
    console.print(
        f"threads that pay: {paying}; a bare process takes {megabytes(device.base_bytes)}"
    )
    told = []
    if device.battery is not None:
        told.append(f"battery {device.battery:.0%}{', discharging' if device.on_battery else ''}")
    if device.celsius is not None:
        told.append(f"{device.celsius:.0f} °C")
    if device.throttled:
        told.append("slowed down by heat while it was measured")
    for line in (*told, *device.notes):
        console.print(line, soft_wrap=True)


def _show_exits(said: Acceptance | None, missing: str) -> None:
    console = Console(highlight=False)
    if said is None:
        if missing:
            console.print(missing, soft_wrap=True, markup=False)
        return
    shares = zip(said.cuts, said.right.mean(axis=0).tolist(), strict=True)
    words = ", ".join(f"at {cut} {share:.0%}" for cut, share in shares)
    console.print(f"exits right over {said.tokens} tokens: {words or 'there are none'}")
    if said.paths:
        words = ", ".join(f"{name} {one.right.mean():.0%}" for name, one in said.paths.items())
        console.print(f"draft paths right over the same: {words}")


def _show_cloud(console: Console, found: Probed) -> None:
    cloud = found.cloud
    if found.unknown:
        console.print(f"not told by this (older) cloud: {', '.join(found.unknown)}")
        return
    console.print(
        f"model {cloud.fingerprint[:12]}, {cloud.layers} layers; {cloud.sessions} sessions, "
        f"{cloud.at_work} at work",
        soft_wrap=True,
    )
    if not cloud.costs:
        console.print("what it takes for rows is not known yet; probe again")
        return
    counts = (2, 8, 32)
    table = plain_table("Milliseconds to verify", ["from", *(f"{n} rows" for n in counts)])
    for cut in sorted(cut for cut in cloud.costs if cut < cloud.layers):
        table.add_row(f"layer {cut}", *(f"{1e3 * cloud.seconds(cut, n, n):.1f}" for n in counts))
    console.print(table)
    if cloud.token_seconds:
        console.print(f"alone it writes {1 / cloud.token_seconds:.1f} tokens/s over this link")


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


def _rate(bits: float) -> str:
    return f"{bits / 1e6:.1f} Mbit/s" if bits else "unknown"
