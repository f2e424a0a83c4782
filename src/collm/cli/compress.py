"""`collm compress`: a draft path for a device too small for the layers up to a cut."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from collm.cli.options import (
    DeviceOption,
    JsonOption,
    ThreadsOption,
    byte_count,
    needs_torch,
    numbers,
    thread_count,
    tune_folder,
)
from collm.cli.progress import counting_bar
from collm.cli.run import default_placement
from collm.errors import UsageError
from collm.model.artifact import Artifact
from collm.model.drafts import draft_bytes, draft_memory, remove_draft

if TYPE_CHECKING:
    from collm.tune.compress import Made, Tuner
    from collm.tune.corpus import Corpus

_ROUNDS = 5


def compress_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder; it gets the path.")],
    name: Annotated[str, typer.Option(help="What the path is called; one of its name goes.")],
    upto: Annotated[
        int | None,
        typer.Option(help="The cut whose exit it ends in; default: the one nearest to half."),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="The layers to keep, such as 0,1,2,5,8.")
    ] = None,
    drop: Annotated[
        int, typer.Option(min=0, help="Leave out so many layers: those that are missed least.")
    ] = 0,
    memory: Annotated[
        str | None, typer.Option(help="Keep what fits into this much, such as 40mb.")
    ] = None,
    ffn: Annotated[
        float, typer.Option(help="Share of the feed-forward channels to keep, such as 0.75.")
    ] = 1.0,
    loose: Annotated[
        bool,
        typer.Option(
            "--loose",
            help="Choose channels one by one, not in groups of 32; the matrix behind them is "
            "rounded to int8.",
        ),
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(help="int4, int8, mixed or fp32; default: as the artifact has them."),
    ] = None,
    analysis: Annotated[
        Path | None,
        typer.Option(help="What collm analyze --out wrote; default: choose on some of the text."),
    ] = None,
    tune_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens to tune the exit on; 0: as the cut's exit is.")
    ] = 60_000,
    data: Annotated[
        Path | None,
        typer.Option(help="A corpus of collm synthesize; default: the model writes one."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Held-out tokens to measure on.")] = 3000,
    look: Annotated[
        int, typer.Option(min=1, help="Tokens to choose layers and channels by.")
    ] = 1000,
    learning_rate: Annotated[float, typer.Option(help="The highest learning rate.")] = 3e-4,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same path.")] = 0,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder to keep the run in; default: ARTIFACT-tune.", show_default=False),
    ] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Take the path of this name out again.")
    ] = False,
    threads: ThreadsOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Make a draft path: some layers, thinned out, and an exit tuned for them.

    In mode verified it changes the speed and never the text: collm run --draft-path NAME.
    """
    from collm.tune.analysis import read_analysis
    from collm.tune.choosing import Wanted, choose, examples_to_choose_by
    from collm.tune.compress import Judges, make_draft
    from collm.tune.draft_scores import decode_seconds, model_choices
    from collm.tune.own_text import own_text
    from collm.tune.scores import choose_examples

    opened = Artifact(artifact)
    if remove:
        left = remove_draft(artifact, name).drafts
        typer.echo(f"{artifact}: {', '.join(e.name for e in left) or 'no draft path'} left")
        return
    cores = thread_count(threads)
    wanted = Wanted(
        name=name,
        cut=default_placement(opened.manifest) if upto is None else upto,
        layers=None if layers is None else tuple(numbers("--layers", layers)),
        drop=drop,
        memory_bytes=0 if memory is None else byte_count("--memory", memory),
        ffn=ffn,
        loose=loose,
        weights=weights or "",
    )
    wanted.check(opened)
    if tune_tokens:
        needs_torch("compress --tune-tokens")
    if not 0 < learning_rate < 1:
        raise UsageError(f"--learning-rate {learning_rate:g}: expected a number between 0 and 1")
    known = None if analysis is None else read_analysis(analysis, opened)
    folder = work or tune_folder(artifact)
    corpus = corpus_to_use(opened, folder, data, tune_tokens, seed, device)
    if corpus is not None:
        judged, seen = choose_examples(corpus, rows), examples_to_choose_by(corpus, look)
    else:
        with counting_bar("writing text", unit="tokens") as progress:
            judged = seen = own_text(opened, min(rows, look), threads=cores, progress=progress)
    with counting_bar("choosing", width=22) as progress:
        plan = choose(opened, wanted, seen, folder, threads=cores, analysis=known, told=progress)
        choices = model_choices(opened, judged, threads=cores, told=progress)
    tuner: Tuner | None = None
    if tune_tokens:
        assert corpus is not None
        tuner = draft_tuner(opened, corpus, folder, tune_tokens, learning_rate, seed, cores, device)
    judges = Judges(examples=judged, choices=choices, threads=cores)
    made = make_draft(artifact, plan, judges, tuner)
    from collm.runtime.draft_stage import DraftStage

    stage = DraftStage(Artifact(artifact), name, threads=cores)
    seconds = statistics.median(decode_seconds({name: stage}, _ROUNDS)[name])
    _report(made, seconds, as_json)


def corpus_to_use(
    artifact: Artifact, work: Path, data: Path | None, tokens: int, seed: int, device: str
) -> Corpus | None:
    """The corpus given, or one that the model writes; None where none is needed."""
    from collm.tune.corpus import check_tokenizer, read_corpus

    if data is not None:
        corpus = read_corpus(data)
        check_tokenizer(corpus, artifact)
        return corpus
    if not tokens:
        return None
    from collm.tune.device import pick_device
    from collm.tune.distill import DistillConfig
    from collm.tune.tuning import TuneConfig, corpus_for

    training = DistillConfig(tokens=tokens, seed=seed)
    config = TuneConfig(work=work, device=pick_device(device), training=training)
    return corpus_for(artifact, config, _said)


def draft_tuner(
    artifact: Artifact,
    corpus: Corpus,
    work: Path,
    tokens: int,
    learning_rate: float,
    seed: int,
    threads: int,
    device: str,
) -> Tuner:
    """What tunes exits on a corpus; the full model reads it when the first one is tuned."""
    from functools import cache

    from collm.model.drafts import DraftPlan
    from collm.tune.backbone import load_backbone
    from collm.tune.device import pick_device, set_threads
    from collm.tune.distill import DistillConfig
    from collm.tune.draft_tuning import School, open_school, tune_draft

    place = pick_device(device)
    config = DistillConfig(tokens=tokens, learning_rate=learning_rate, seed=seed)

    @cache
    def school() -> School:
        set_threads(threads)
        backbone = load_backbone(artifact, device=place)
        return open_school(artifact, backbone, corpus, tokens, seed, work)

    def tuner(plan: DraftPlan) -> Path:
        return tune_draft(artifact, plan, school(), config, work / "drafts", said=_said).path

    return tuner


def _said(line: str) -> None:
    Console(stderr=True, highlight=False).print(line, soft_wrap=True)


def _report(made: Made, seconds: float, as_json: bool) -> None:
    from collm.tune.choosing import POSITIONS

    entry, score = made.entry, made.best
    size = draft_bytes(made.manifest, entry)
    memory = draft_memory(made.manifest, entry, POSITIONS)
    if as_json:
        record = {
            "name": entry.name,
            "upto": entry.cut,
            "layers": list(entry.layers),
            "channels": list(entry.channels),
            "weights": entry.weights,
            "bytes": size,
            "memory_bytes": memory,
            "agreement_untuned": made.untuned.agreement,
            "agreement": score.agreement,
            "tuned": made.is_tuned,
            "accepted": score.accepted,
            "rows": score.rows,
            "seconds_per_token": seconds,
        }
        typer.echo(json.dumps(record))
        return
    was = f" ({made.untuned.agreement:.1%} before tuning)" if made.is_tuned else ""
    if made.tuned is not None and not made.is_tuned:
        was = f" (the tuned exit came to {made.tuned.agreement:.1%} and is not used)"
    typer.echo(
        f"{entry.name}: {len(entry.layers)} of {entry.cut} layers, {entry.weights} weights, "
        f"{size / 1e6:.1f} MB ({memory / 1e6:.0f} MB with head and cache), agreement "
        f"{score.agreement:.1%}{was}, {score.accepted:.2f} of 8 drafts accepted, "
        f"{1e3 * seconds:.2f} ms a draft token\n"
        f"use it with: collm run ARTIFACT PROMPT --cloud HOST:PORT --draft-path {entry.name}"
    )
