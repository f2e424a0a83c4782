"""`collm demo`: the main job on the embedded model, and the check that the text is exact."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from collm.cli.build import build_artifact
from collm.cli.options import JsonOption, ThreadsOption, output_file, thread_count
from collm.cli.prompts import PROMPTS as PROMPTS
from collm.cli.run import cloud_link
from collm.cli.show import Palette, PiecePrinter, kilobytes, plain_table
from collm.config import Generation
from collm.errors import ArtifactError
from collm.model.artifact import Artifact
from collm.model.exits import shipped_exits, stem_of
from collm.session.edge import Edge
from collm.session.events import Account


def demo_command(
    artifact: Annotated[
        Path | None, typer.Option(help="Where the artifact is kept; made if it is missing.")
    ] = None,
    placement: Annotated[int, typer.Option(help="Layers on the edge.")] = 15,
    threshold: Annotated[float, typer.Option(help="Confidence that an exit needs.")] = 0.6,
    draft: Annotated[int, typer.Option(help="Most tokens drafted before the cloud is asked.")] = 8,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 96,
    threads: ThreadsOption = 0,
    picture: Annotated[
        Path | None, typer.Option(help="Save what is shown as an SVG picture.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Split SmolLM2-135M between this process and a cloud process, and check the text."""
    output_file(picture)
    folder = artifact or default_folder()
    opened = _artifact(folder)
    console = Console(highlight=False, quiet=as_json)
    if picture:
        console = Console(highlight=False, width=100, record=True, force_terminal=True)
    cores = thread_count(threads, processes=2)
    generation = Generation(threshold=threshold, draft=draft, max_tokens=max_tokens)
    with cloud_link(folder, "spawn", cores) as linked:
        edge = Edge(opened, mode="verified", placement=placement, threads=cores, connect=linked)
        layers = opened.architecture.layers
        console.print(
            f"[b]{opened.manifest.name}[/b]: layers 0 to {placement - 1} and exits at "
            f"{', '.join(map(str, edge.exits))} in this process, layers {placement} to "
            f"{layers - 1} in another, gRPC between them.\n",
            soft_wrap=picture is None,
        )
        verified = [_stream(console, edge, prompt, generation) for prompt in PROMPTS]
        plain = Edge(opened, mode="cloud", placement=placement, threads=cores, connect=linked)
        alone = replace(generation, mode="cloud")
        cloud = [plain.answer(_ids(plain, p), alone).finish() for p in PROMPTS]
    whole_edge = Edge(opened, mode="verified", placement=layers, threads=cores)
    whole = [whole_edge.answer(_ids(whole_edge, p), generation).finish() for p in PROMPTS]
    equal = [a.token_ids for a in verified] == [a.token_ids for a in whole]
    if as_json:
        typer.echo(json.dumps(_summary(verified, cloud, whole, equal)))
    else:
        _tables(console, edge, verified, cloud, whole, equal)
    if picture:
        console.save_svg(str(picture), title="collm demo")
    if not equal:
        raise typer.Exit(1)


def default_folder() -> Path:
    """Where the demo's artifact is kept between runs."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "collm" / "smollm2"


def _artifact(folder: Path) -> Artifact:
    """The demo's artifact, built where it is missing.

    One's own folder is used as it is; the default one is rebuilt when damaged or outdated.
    """
    if folder != default_folder() and folder.exists():
        return Artifact(folder)
    try:
        opened = Artifact(folder)
        expected = {stem_of(path) for path in shipped_exits(opened.manifest.source_sha256)}
        present = {entry.norm.removesuffix(".norm.f32") for entry in opened.manifest.exits}
        if expected <= present:
            return opened
    except ArtifactError:
        pass  # built below, with a progress bar
    build_artifact("smollm2", folder, cuts=[5, 10, 15, 20], weights="int4", force=True)
    return Artifact(folder)


def _ids(edge: Edge, prompt: str) -> list[int]:
    return edge.tokenizer.encode_chat([{"role": "user", "content": prompt}])


def _stream(console: Console, edge: Edge, prompt: str, generation: Generation) -> Account:
    console.print(f"[b]> {prompt}[/b]")
    answer = edge.answer(_ids(edge, prompt), generation)
    palette = Palette(edge.exits)
    if console.record:  # a picture has edges to wrap at, a stream of pieces has none
        console.print(Text.assemble(*((p.text, palette.style(p.token.source)) for p in answer)))
        console.print()
        return answer.account
    printer = PiecePrinter(console, palette)
    for piece in answer.with_previews():
        printer.print(piece)
    console.print("\n")
    return answer.account


def _speed(accounts: list[Account]) -> float:
    tokens = sum(len(a.tokens) for a in accounts)
    return tokens / max(sum(a.wall_seconds for a in accounts), 1e-9)


def _summary(
    verified: list[Account], cloud: list[Account], whole: list[Account], equal: bool
) -> dict[str, object]:
    sources: dict[str, int] = {}
    for account in verified:
        for source, count in account.sources.items():
            sources[source] = sources.get(source, 0) + count
    tokens = sum(sources.values())
    return {
        "tokens": tokens,
        "sources": sources,
        "rounds": sum(a.rounds for a in verified),
        "bytes_up": sum(a.bytes_up for a in verified),
        "bytes_down": sum(a.bytes_down for a in verified),
        "edge_tokens_per_second": tokens / max(sum(a.edge_seconds for a in verified), 1e-9),
        "tokens_per_second": _speed(verified),
        "cloud_mode_tokens_per_second": _speed(cloud),
        "whole_model_tokens_per_second": _speed(whole),
        "equal_to_whole_model": equal,
    }


def _tables(
    console: Console,
    edge: Edge,
    verified: list[Account],
    cloud: list[Account],
    whole: list[Account],
    equal: bool,
) -> None:
    figures = _summary(verified, cloud, whole, equal)
    sources, tokens = figures["sources"], figures["tokens"]
    assert isinstance(sources, dict) and isinstance(tokens, int)
    order = sorted(sources, key=lambda s: (s == "cloud", len(s), s))
    console.print(Palette(edge.exits).legend(order))
    table = plain_table(None, ["", ""])
    table.show_header = False
    for source in order:
        count = sources[source]
        table.add_row(f"tokens from {source}", f"{count} ({count / tokens:.0%})")
    rounds = figures["rounds"]
    table.add_row("round trips", f"{rounds} for {tokens} tokens")
    up, down = (sum(getattr(a, f"bytes_{way}") for a in verified) for way in ("up", "down"))
    table.add_row("bytes up / down", f"{kilobytes(up)} / {kilobytes(down)}")
    names = {
        "edge_tokens_per_second": "tokens/s of the edge's own computing",
        "tokens_per_second": "tokens/s of edge and cloud together",
        "cloud_mode_tokens_per_second": "tokens/s of the cloud alone (mode cloud)",
        "whole_model_tokens_per_second": "tokens/s of the whole model in this process",
    }
    for key, name in names.items():
        table.add_row(name, f"{figures[key]:.1f}")
    console.print(table)
    faster = _speed(verified) > _speed(cloud)
    verdict = "faster" if faster else "slower"
    console.print(
        f"On this machine, over loopback, collaboration is {verdict} than the cloud alone "
        f"({_speed(verified) / max(_speed(cloud), 1e-9):.2f} times its speed)."
    )
    if equal:
        console.print("[b green]equal[/]: every token is the full model's (checked with ==)")
    else:
        console.print("[b red]NOT EQUAL[/]: the text differs from the full model's; report a bug")
