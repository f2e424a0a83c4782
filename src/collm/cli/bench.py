"""`collm bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from collm.cli.bench_capacity import capacity_command, scaling_command
from collm.cli.bench_compress import compress_bench_command
from collm.cli.bench_peers import peers_command
from collm.cli.bench_plan import plan_bench_command
from collm.cli.bench_report import report_command
from collm.cli.bench_serve import serve_bench_command
from collm.cli.bench_table import table_command
from collm.cli.bench_tiers import tiers_command
from collm.cli.bench_wire import adapt_command, wire_command
from collm.cli.demo import PROMPTS
from collm.cli.options import (
    CriterionOption,
    JsonOption,
    ThreadsOption,
    numbers,
    output_file,
    thread_count,
)
from collm.cli.progress import counting_bar
from collm.cli.prompts import read_prompts, record_ids
from collm.cli.run import cloud_link, default_placement
from collm.cli.show import plain_table, wide_console
from collm.model.artifact import Artifact
from collm.model.sources import resolve_source

bench = typer.Typer(help="Measure, against baselines in the same run.", no_args_is_help=True)
bench.command("table")(table_command)
bench.command("report")(report_command)
bench.command("capacity")(capacity_command)
bench.command("peers")(peers_command)
bench.command("plan")(plan_bench_command)
bench.command("scaling")(scaling_command)
bench.command("wire")(wire_command)
bench.command("adapt")(adapt_command)
bench.command("tiers")(tiers_command)
bench.command("compress")(compress_bench_command)
bench.command("serve")(serve_bench_command)


@bench.command("engine")
def engine_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    gguf: Annotated[
        str, typer.Option(help="The GGUF file that llama.cpp runs, or the word smollm2.")
    ] = "smollm2",
    threads: ThreadsOption = 1,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens decoded a measurement.")] = 128,
    prefill: Annotated[int, typer.Option(min=1, help="Tokens of the long prompt.")] = 512,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of every contestant.")] = 7,
    exit_cut: Annotated[
        int | None,
        typer.Option("--exit", help="The standalone exit; default: nearest to half the layers."),
    ] = None,
    agreement_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens compared with the fp32 model; 0: none.")
    ] = 1000,
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
) -> None:
    """Compare decode, prefill and argmax agreement with llama.cpp's."""
    from collm.bench.engine import run_engine
    from collm.bench.engine_report import EngineOptions
    from collm.bench.engine_table import print_report

    output_file(out)
    options = EngineOptions(
        threads=thread_count(threads),
        tokens=tokens,
        prefill=prefill,
        rounds=rounds,
        exit=exit_cut,
        agreement_tokens=agreement_tokens,
    )
    opened = Artifact(artifact)
    with counting_bar("starting", timed=False) as progress:
        report = run_engine(opened, resolve_source(gguf), options, progress)
    text = json.dumps(report.to_json(), indent=1)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    if as_json:
        typer.echo(text)
    else:
        # Wide enough for the tables also where the output is no terminal.
        print_report(wide_console(120), report)


@bench.command("deadline")
def deadline_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    deadline: Annotated[float, typer.Option(min=1, help="Milliseconds from token to token.")] = 50,
    delay: Annotated[
        float, typer.Option(min=0, help="Milliseconds by which the cloud's answers come late.")
    ] = 200,
    prompts: Annotated[
        Path | None, typer.Option(help="JSONL, as for collm run; default: the demo's.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of every answer.")] = 96,
    placement: Annotated[int | None, typer.Option(help="Layers on the edge.")] = None,
    exits: Annotated[str | None, typer.Option(help="Exits in use, such as 5,15.")] = None,
    criterion: CriterionOption = "confidence:0.6",
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
) -> None:
    """Time every token of mode threshold under a deadline, with a cloud that is late."""
    from collm.bench.deadline import DeadlineOptions, run_deadline

    output_file(out)
    opened = Artifact(artifact)
    tokenizer = opened.tokenizer()
    records = read_prompts(prompts) if prompts else [{"prompt": text} for text in PROMPTS]
    options = DeadlineOptions(
        placement=default_placement(opened.manifest) if placement is None else placement,
        exits=None if exits is None else tuple(numbers("--exits", exits)),
        criterion=criterion,
        deadline_seconds=deadline / 1000,
        tokens=tokens,
        threads=thread_count(threads, processes=2),
    )
    ids = [record_ids(tokenizer, record, raw=False) for record in records]
    with cloud_link(artifact, "spawn", options.threads) as linked:
        assert linked is not None
        report = run_deadline(opened, ids, linked, [0.0, delay / 1000], options)
    text = json.dumps(report.to_json(), indent=1)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    if as_json:
        typer.echo(text)
        return
    columns = ["cloud late by", "tokens", "median", "p99", "longest", "late", "degraded", "cloud"]
    table = plain_table(f"Tokens due every {deadline:g} ms", columns)
    for timing in report.timings:
        times = (timing.delay, timing.median, timing.p99, timing.longest)
        first, *others = (f"{1000 * seconds:.1f} ms" for seconds in times)
        shares = (f"{share:.1%}" for share in (timing.late, timing.degraded, timing.from_cloud))
        table.add_row(first, str(timing.tokens), *others, *shares)
    wide_console(100).print(table)
