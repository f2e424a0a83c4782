"""`collm bench compress`: draft paths in fewer bits, channels and layers, beside int8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from collm.cli.compress import draft_tuner
from collm.cli.options import (
    DeviceOption,
    JsonOption,
    ThreadsOption,
    needs_torch,
    numbers,
    output_file,
    thread_count,
    tune_folder,
)
from collm.cli.progress import counting_bar
from collm.cli.show import plain_table, wide_console
from collm.errors import PlacementError, UsageError
from collm.model.artifact import Artifact

if TYPE_CHECKING:
    from collm.tune.compress import Tuner


def compress_bench_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder; it stays as it is.")],
    cuts: Annotated[str, typer.Option(help="Cuts whose layers are compressed.")] = "15,10",
    variants: Annotated[
        str | None,
        typer.Option(help="Those to compare with int8, such as stored,ffn75,drop2; default: all."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="A corpus of collm synthesize; default: the model's own answers."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Held-out tokens to measure on.")] = 8000,
    look: Annotated[
        int, typer.Option(min=1, help="Tokens to choose layers and channels by.")
    ] = 1000,
    tune_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens that each exit is tuned on; 0: none is.")
    ] = 60_000,
    budget: Annotated[
        float, typer.Option(min=0, help="Minutes of tuning; no exit is begun after them.")
    ] = 120,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each variant is timed.")] = 15,
    learning_rate: Annotated[float, typer.Option(help="The highest learning rate.")] = 3e-4,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same exits.")] = 0,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder to keep the run in; default: compress in ARTIFACT-tune.",
            show_default=False,
        ),
    ] = None,
    threads: ThreadsOption = 1,
    device: DeviceOption = "auto",
    raw: Annotated[
        Path | None,
        typer.Option(help="Measure nothing: show the raw figures of an earlier --out."),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Put the tables into this Markdown page, between its marks.")
    ] = None,
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
) -> None:
    """Agreement, accepted drafts, speed and memory of draft paths, relative to int8 weights."""
    from collm.tune.variants_report import answer, lines, read_raw, update_page

    output_file(out)
    if page is not None and not page.is_file():
        raise UsageError(f"--page {page}: no such file; expected a Markdown page with the marks")
    if raw is not None:
        figures = read_raw(raw)
    else:
        if tune_tokens and budget:
            needs_torch("bench compress --tune-tokens")
        tokens = tune_tokens if budget else 0
        chosen = None if variants is None else tuple(part.strip() for part in variants.split(","))
        at = numbers("--cuts", cuts)
        folder = work or tune_folder(artifact) / "compress"
        figures = _measure(
            Artifact(artifact), at, chosen, data, rows, look, tokens, 60 * budget, rounds,
            learning_rate, seed, folder, thread_count(threads), device,
        )  # fmt: skip
    text = json.dumps(figures, indent=1)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    if page is not None:
        update_page(page, figures)
    if as_json:
        typer.echo(text)
        return
    console = wide_console(150)
    for cut in dict.fromkeys(v["cut"] for v in figures["variants"]):
        _print(console, f"Draft paths up to layer {cut}", cut, lines(figures))
    console.print(answer(figures), highlight=False)


def _print(console: Console, title: str, cut: int, made: list[Any]) -> None:
    from collm.tune.variants_report import COLUMNS

    table = plain_table(title, list(COLUMNS))
    for line in made:
        if line.cut == cut:
            table.add_row(*line.cells)
    console.print(table)


def _measure(
    artifact: Artifact,
    cuts: list[int],
    names: tuple[str, ...] | None,
    data: Path | None,
    rows: int,
    look: int,
    tune_tokens: int,
    budget_seconds: float,
    rounds: int,
    learning_rate: float,
    seed: int,
    work: Path,
    threads: int,
    device: str,
) -> dict[str, Any]:
    from collm.bench.machine import load_average, this_machine
    from collm.cli.compress import corpus_to_use
    from collm.model.files import sha256_of
    from collm.tune.choosing import examples_to_choose_by
    from collm.tune.compress import Judges
    from collm.tune.draft_scores import model_choices
    from collm.tune.own_text import own_text
    from collm.tune.scores import choose_examples
    from collm.tune.variants import VariantsConfig, compare, variants_named

    variants = variants_named(names)
    if not 0 < learning_rate < 1:
        raise UsageError(f"--learning-rate {learning_rate:g}: expected a number between 0 and 1")
    for cut in cuts:
        if cut not in artifact.manifest.cuts:
            raise PlacementError(
                f"--cuts {cut}: {artifact.folder} has cuts at "
                f"{', '.join(map(str, artifact.manifest.cuts))}"
            )
    work.mkdir(parents=True, exist_ok=True)
    corpus = corpus_to_use(artifact, work, data, tune_tokens, seed, device)
    if corpus is not None:
        judged, seen = choose_examples(corpus, rows), examples_to_choose_by(corpus, look)
        text = sha256_of(corpus.path)
    else:
        with counting_bar("writing text", unit="tokens") as progress:
            judged = seen = own_text(artifact, rows, threads=threads, progress=progress)
        text = "the model's own greedy answers"
    with counting_bar("reading", width=40) as progress:
        choices = model_choices(artifact, judged, threads=threads, told=progress)
    judges = Judges(examples=judged, choices=choices, threads=threads)
    tuner: Tuner | None = None
    if tune_tokens:
        assert corpus is not None
        tuner = draft_tuner(
            artifact, corpus, work, tune_tokens, learning_rate, seed, thread_count(0), device
        )
    config = VariantsConfig(
        cuts=tuple(cuts),
        variants=variants,
        seen=tuple(seen),
        work=work,
        threads=threads,
        rounds=rounds,
        budget_seconds=budget_seconds if tune_tokens else 0.0,
        settings={
            "text": text,
            "rows": rows,
            "look": look,
            "tune_tokens": tune_tokens,
            "learning_rate": learning_rate,
            "seed": seed,
            "machine": this_machine().cpu,
        },
    )
    console = Console(stderr=True, highlight=False)
    with counting_bar("variants", width=40, timed=False) as progress:
        made = compare(artifact, config, judges, tuner, progress, console.print)
    return {**made, "load_average": load_average()}
