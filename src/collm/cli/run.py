"""`collm run`."""

from __future__ import annotations

import json
import resource
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console

from collm.cli.auto import Asked, AutoPlan, given_options
from collm.cli.cloud_link import cloud_link as cloud_link
from collm.cli.explain import explain_ways
from collm.cli.options import (
    AheadOption,
    BatchOption,
    CloudOption,
    CriterionOption,
    DeadlineOption,
    DraftOption,
    ExitsOption,
    JsonOption,
    JsonSchemaOption,
    LookupOption,
    MetricsOption,
    PlacementOption,
    RepetitionOption,
    RouteOption,
    TemperatureOption,
    ThreadsOption,
    ThresholdOption,
    TopKOption,
    TopLogprobsOption,
    TopPOption,
    WireOption,
    json_schema,
    layer_count,
    numbers,
    thread_count,
)
from collm.cli.prompts import read_prompts, record_ids
from collm.cli.remote import open_artifact
from collm.cli.security import (
    CaOption,
    CertOption,
    KeyOption,
    TokenFileOption,
    client_security,
)
from collm.cli.show import Palette, PiecePrinter, account_line
from collm.config import Generation, Refinement, Sampling
from collm.errors import PlacementError, PromptError
from collm.serve.metrics import metrics_server
from collm.session.answer import Answer
from collm.session.edge import Edge
from collm.session.events import Account
from collm.session.placed import default_placement as default_placement

_CONTEXT = 256
"""Positions of a prompt that a plan leaves room for."""


def run_command(
    context: typer.Context,
    artifact: Annotated[
        str,
        typer.Argument(help="The artifact folder, or addresses to fetch what is needed from."),
    ],
    prompt: Annotated[str | None, typer.Argument(help="What to ask.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help='JSONL: {"prompt": …} or {"messages": […]} a line.')
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="verified (lossless), threshold (CE-CoLLM's), refine, standalone, cloud (remote "
            "alone) or auto (verified or cloud, whatever is faster: lossless)."
        ),
    ] = "verified",
    cloud: CloudOption = None,
    route: RouteOption = "order",
    ca: CaOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    token_file: TokenFileOption = None,
    placement: PlacementOption = None,
    exits: ExitsOption = None,
    threads: ThreadsOption = 0,
    threshold: ThresholdOption = 0.6,
    criterion: CriterionOption = "",
    wire: WireOption = "f32",
    draft_path: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Mode verified: draft with this path of collm compress, load no block and send "
            "token ids only; the text is the full model's all the same.",
        ),
    ] = None,
    first_cut: Annotated[
        int | None,
        typer.Option(help="Where the cloud begins in mode threshold; default: the first exit."),
    ] = None,
    deadline: DeadlineOption = 0.0,
    draft: DraftOption = 8,
    batch: BatchOption = 1,
    ahead: AheadOption = None,
    lookup: LookupOption = False,
    segment: Annotated[int, typer.Option(help="Mode refine: tokens written before a pass.")] = 6,
    passes: Annotated[int, typer.Option(help="Mode refine: most corrections of a segment.")] = 6,
    rank: Annotated[int, typer.Option(help="Mode refine: worst rank that stands.")] = 3,
    gap: Annotated[float, typer.Option(help="Mode refine: nats below the best that stand.")] = 1.5,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 128,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    seed: Annotated[int, typer.Option(help="Same seed, same text.")] = 0,
    repetition_penalty: RepetitionOption = 1.0,
    schema: JsonSchemaOption = "",
    top_logprobs: TopLogprobsOption = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this string (repeatable).")
    ] = None,
    ignore_eos: Annotated[bool, typer.Option(help="Go on after the end of the text.")] = False,
    raw: Annotated[bool, typer.Option(help="No chat template around PROMPT.")] = False,
    begin_offline: Annotated[
        bool,
        typer.Option(
            "--begin-offline",
            help="Where no cloud answers at first, begin with the exits and verify later.",
        ),
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say how tokens were made, and why: mode auto.")
    ] = False,
    metrics: MetricsOption = "",
    as_json: JsonOption = False,
) -> None:
    """Answer a prompt, each token coloured by where it was made."""
    generation = Generation(
        mode=mode,
        max_tokens=max_tokens,
        threshold=threshold,
        criterion=criterion,
        lookup=lookup,
        deadline_seconds=deadline / 1000,
        refinement=Refinement(segment=segment, passes=passes, rank=rank, gap=gap),
        draft=draft,
        batch=batch,
        ahead=ahead,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
        sampling=Sampling(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            repetition_penalty=repetition_penalty,
            constraint=json_schema(schema),
            top_logprobs=top_logprobs,
        ),
    )
    if (prompt is None) == (prompts is None):
        raise PromptError("give either a PROMPT or --prompts FILE")
    security = client_security(ca, cert, key, token_file)
    records = read_prompts(prompts) if prompts else [{"prompt": prompt}]
    before = psutil.Process().memory_info().rss
    chosen = None if exits is None else numbers("--exits", exits)
    layers = None if placement in (None, "auto") else layer_count("--placement", placement or "")
    if draft_path is not None:
        if exits is not None or placement == "auto":
            raise PlacementError("--draft-path brings its own exit; leave out --exits and auto")
        layers = layers or 0
    opened = open_artifact(artifact, mode, layers, chosen, cloud, security)
    placed = default_placement(opened.manifest) if layers is None else layers
    cores = thread_count(threads, processes=2 if cloud == "spawn" and mode != "cloud" else 1)
    with ExitStack() as stack:
        if metrics:
            stack.enter_context(metrics_server(metrics))
        linked = stack.enter_context(cloud_link(opened.folder, cloud, cores, security, route))
        auto: AutoPlan | None = None
        if placement == "auto":
            asked = Asked(
                generation=generation,
                exits=None if chosen is None else tuple(chosen),
                wire=wire,
                threads=threads,
                given=given_options(context),
            )
            auto = stack.enter_context(AutoPlan(opened, linked, asked, _CONTEXT + max_tokens))
            generation, mode, placed = auto.generation(), auto.mode, auto.way.placement
            chosen, cores, wire = list(auto.way.exits) or None, auto.way.threads, auto.way.wire
            draft_path = auto.way.draft_path or None
        edge = stack.enter_context(
            Edge(
                opened,
                mode=mode,
                placement=placed,
                exits=chosen,
                threads=cores,
                connect=linked,
                wire=wire,
                first_cut=first_cut,
                draft=draft_path,
                begin_offline=begin_offline,
                probe=auto is None,
            )
        )
        edge.criterion(generation)
        model_bytes = psutil.Process().memory_info().rss - before
        for number, record in enumerate(records):
            if auto is not None and number:
                generation = auto.generation()
            answer = edge.answer(record_ids(edge.tokenizer, record, raw=raw), generation)
            if as_json:
                report = account_json(answer.finish(), edge, model_bytes)
                typer.echo(json.dumps(report, ensure_ascii=False))
            else:
                _show(answer, Palette(edge.exits))
                if explain:
                    explain_ways(answer.account, edge)


def account_json(account: Account, edge: Edge, model_bytes: int) -> dict[str, Any]:
    """One answer as `--json` prints it."""
    return {
        "mode": account.mode,
        "placement": edge.placement,
        "exits": list(edge.exits),
        "text": account.text,
        "finish_reason": account.finish_reason,
        "prompt_tokens": account.prompt_tokens,
        "token_ids": account.token_ids,
        "tokens": [
            {
                "id": t.token_id,
                "source": t.source,
                "confidence": t.confidence,
                "by": t.by,
                "provisional": t.provisional,
                "logprob": t.logprob,
                "alternatives": t.alternatives,
            }
            for t in account.tokens
        ],
        "rounds": account.rounds,
        "drafted": account.drafted,
        "cloud_rows": account.cloud_rows,
        "cloud_heads": account.cloud_heads,
        "degraded": account.degraded,
        "changes": [asdict(one) for one in account.changes],
        "provisional": account.provisional,
        "previewed": account.previewed,
        "withdrawn": account.withdrawn,
        "coherence": asdict(account.coherence) if account.coherence else None,
        "passes": [asdict(one) for one in account.passes],
        "logprob_before": account.logprob_before,
        "logprob_after": account.logprob_after,
        "reconnects": account.reconnects,
        "replayed_bytes": account.replayed_bytes,
        "bytes_up": account.bytes_up,
        "bytes_down": account.bytes_down,
        "edge_seconds": account.edge_seconds,
        "cloud_seconds": account.cloud_seconds,
        "wall_seconds": account.wall_seconds,
        "first_token_seconds": account.first_token_seconds,
        "token_seconds": account.token_seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "model_bytes": model_bytes,
        "fingerprint": edge.artifact.fingerprint,
    }


def peak_rss_bytes() -> int:
    """The most memory this process has been resident in."""
    scale = 1 if psutil.MACOS else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _show(answer: Answer, palette: Palette) -> None:
    console = Console(highlight=False)
    printer = PiecePrinter(console, palette)
    for piece in answer.with_previews():
        printer.print(piece)
    console.print()
    console.print(account_line(answer.account), style="dim")
