"""`collm plan`, and what `collm run --placement auto` takes from it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from collm.cli.options import JsonOption, ThreadsOption, byte_count
from collm.cli.profile import RECORDED_TOKENS, link_line, recorded_prompts
from collm.cli.progress import counting_bar
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
from collm.link.base import Link
from collm.link.dialer import Dialer
from collm.link.shapes import LinkShape, parse_link
from collm.model.artifact import Artifact
from collm.policy.cost_model import Candidate, World
from collm.policy.planner import MODES, Choice, Plan, Wish, plan
from collm.policy.profiles import CloudProfile, LinkProfile
from collm.session.planning import (
    acceptance,
    cloud_like,
    device_profile,
    frame_bytes,
    way_words,
)
from collm.session.probing import probe

_CONNECTS = 1.5
"""Round trips until a session may begin, where they are not measured: TCP, then HTTP/2."""
_CONTEXT = 512


def plan_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    cloud: Annotated[str | None, typer.Option(help="HOST:PORT of the cloud, to probe.")] = None,
    link: Annotated[
        str | None,
        typer.Option(help="Instead: a link to a cloud like this device, such as rtt:40ms@10mbit."),
    ] = None,
    objective: Annotated[
        str, typer.Option(help="What to make small: latency, cloud-cost, energy or bytes.")
    ] = "latency",
    memory: Annotated[
        str, typer.Option(help="Most memory of the edge's process, such as 300mb; empty: what is.")
    ] = "",
    quality: Annotated[
        str, typer.Option(help="lossless, or the share of the full model's tokens, such as 0.98.")
    ] = "lossless",
    modes: Annotated[str, typer.Option(help="Modes to choose from.")] = ",".join(MODES),
    context: Annotated[
        int, typer.Option(min=1, help="Positions, prompt included, that must fit into memory.")
    ] = _CONTEXT,
    threads: ThreadsOption = 0,
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure the device again.")] = False,
    ca: CaOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the best way to answer here: how many layers, which exits, mode and wire format."""
    if cloud is not None and link is not None:
        raise UsageError("--cloud and --link: give the cloud to probe, or a link to assume")
    wish = Wish(
        objective=objective,
        memory_bytes=byte_count("--memory", memory) if memory else None,
        quality=parse_quality(quality),
        modes=tuple(modes.split(",")),
    )
    opened = Artifact(artifact)
    shape = None if link is None else parse_link(link)
    connect = None
    if cloud is not None:
        security = client_security(ca, cert, key, token_file)
        check_token_stays_secret(cloud.split(","), security)
        connect = Dialer(cloud.split(","), security=security)
    world = plan_world(
        opened, connect, shape=shape, context=context, threads=threads, refresh=refresh
    )
    made = plan(world, wish)
    command = run_line(artifact, made.chosen.candidate, world, cloud)
    if as_json:
        typer.echo(json.dumps(plan_json(made, world, command)))
    else:
        _show(made, world, command)


def plan_world(
    artifact: Artifact,
    connect: Callable[[], Link] | None,
    *,
    shape: LinkShape | None = None,
    context: int = _CONTEXT,
    threads: int = 0,
    refresh: bool = False,
    budget: float = 10.0,
) -> World:
    """All that a plan is made from, measured where it is not known yet.

    connect: reaches the cloud that is probed; shape: a link to assume in its place.
    Raises UsageError and LinkError.
    """
    with counting_bar("looking at this device", timed=False) as progress:
        device = device_profile(
            artifact,
            budget=budget,
            threads=[threads] if threads else None,
            refresh=refresh,
            progress=progress,
        )
        said = acceptance(
            artifact,
            recorded_prompts(artifact, None),
            tokens=RECORDED_TOKENS,
            threads=device.best_threads,
            progress=progress,
        )
    link: LinkProfile | None = None
    cloud: CloudProfile | None = None
    if shape is not None:
        link = LinkProfile(
            round_trip=shape.round_trip_seconds,
            jitter=shape.jitter_seconds / 2,
            up_bits=shape.bits_per_second,
            down_bits=shape.bits_per_second,
            connect=_CONNECTS * shape.round_trip_seconds,
        )
        cloud = cloud_like(device, artifact)
    elif connect is not None:
        found = probe(connect, tokens=True)
        link, cloud = found.link, found.cloud
        if cloud.fingerprint and cloud.fingerprint != artifact.fingerprint:
            raise UsageError(
                f"the cloud serves model {cloud.fingerprint[:12]}, this is "
                f"{artifact.fingerprint[:12]}; both must run the same artifact"
            )
        if not cloud.costs:  # an older one: better a guess than no plan
            cloud = replace(cloud_like(device, artifact), token_seconds=cloud.token_seconds)
    return World(
        device=device,
        acceptance=said,
        frames=frame_bytes(artifact.architecture.hidden_size),
        link=link,
        cloud=cloud,
        context=min(context, artifact.architecture.context_length),
    )


def parse_quality(text: str) -> float | None:
    """None for `lossless`."""
    if text == "lossless":
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(
            f"--quality {text[:40]!r}: expected lossless, or a share such as 0.98"
        ) from None


def run_line(artifact: Path, candidate: Candidate, world: World, cloud: str | None) -> str:
    """The command that answers so."""
    layers = world.device.bounds[-1]
    alone = candidate.mode == "standalone" or (
        candidate.mode == "verified" and candidate.placement == layers
    )
    words = ["collm", "run", str(artifact), "PROMPT", *way_words(candidate, layers)]
    if not alone:
        words += ["--cloud", cloud or "HOST:PORT"]
    return shlex.join(words)


def plan_json(made: Plan, world: World, command: str) -> dict[str, Any]:
    """As `--json` prints it."""
    return {
        "objective": made.wish.objective,
        "quality": made.wish.quality or "lossless",
        "memory_bytes": made.wish.memory_bytes or world.device.memory_bytes,
        "chosen": _choice_json(made.chosen),
        "others": [_choice_json(one) for one in made.others],
        "frontier": [_choice_json(one) for one in made.frontier],
        "considered": made.considered,
        "refused": made.refused,
        "link": asdict(world.link) if world.link else None,
        "cloud": asdict(world.cloud) if world.cloud else None,
        "command": command,
    }


def _choice_json(one: Choice) -> dict[str, Any]:
    predicted = asdict(one.predicted) if one.predicted else None
    if predicted and one.predicted:
        predicted["tokens_per_second"] = one.predicted.tokens_per_second
    return {
        "candidate": asdict(one.candidate),
        "predicted": predicted,
        "why_not": one.why_not,
    }


def words_of(candidate: Candidate, layers: int) -> str:
    """A candidate for people."""
    if candidate.mode == "cloud":
        return "cloud alone"
    if candidate.mode == "verified" and candidate.placement == layers:
        return f"whole model here ({layers} layers)"
    exits = ",".join(map(str, candidate.exits))
    drafts = f"{candidate.placement} layers, exits {exits}"
    if candidate.draft_path:
        drafts = f"path {candidate.draft_path}"
    words = f"{candidate.mode}, {drafts} ≥ {candidate.threshold}"
    if candidate.mode == "standalone":
        return words
    words += f", {candidate.wire}"
    if candidate.mode == "verified":
        words += f", drafts of {candidate.draft}"
        words += ", ahead" if candidate.ahead is not None else ""
    return words


def _show(made: Plan, world: World, command: str) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=150)
    layers = world.device.bounds[-1]
    console.print(f"device: {world.device.hardware}", soft_wrap=True)
    console.print(f"link: {link_line(world.link) if world.link else 'none'}", soft_wrap=True)
    columns = ["way", "tokens/s", "first", "B/token", "cloud ms", "edge ms", "right", "memory"]
    table = plain_table(None, [*columns, "why not"])
    table.columns[-1].justify = "left"
    for one in (made.chosen, *made.others):
        style = "bold" if one is made.chosen else None
        name = words_of(one.candidate, layers)
        if one.predicted is None:
            table.add_row(name, *["–"] * (len(columns) - 1), one.why_not, style="dim")
            continue
        p = one.predicted
        figures = [
            f"{p.tokens_per_second:.1f}",
            f"{1e3 * p.first_token_seconds:.0f} ms",
            f"{p.bytes_up + p.bytes_down:,.0f}",
            f"{1e3 * p.cloud_seconds:.1f}",
            f"{1e3 * p.edge_seconds:.1f}",
            f"{p.agreement:.1%}" if p.agreement < 1 else "all",
            megabytes(p.memory_bytes),
        ]
        table.add_row(name, *figures, one.why_not or "the plan", style=style)
    console.print(table)
    console.print(
        f"{made.considered} ways considered for {made.wish.objective}, {made.refused} of them do "
        "not fit or are not faithful enough; figures are of a token",
        soft_wrap=True,
    )
    console.print(command, style="bold", soft_wrap=True, markup=False)
