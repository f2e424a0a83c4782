"""`collm analyze`: what each layer costs, and what leaving it out costs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from collm.cli.options import JsonOption, ThreadsOption, output_file, thread_count, tune_folder
from collm.cli.progress import counting_bar
from collm.cli.run import default_placement
from collm.cli.show import plain_table, wide_console
from collm.errors import UsageError
from collm.model.artifact import Artifact

if TYPE_CHECKING:
    from collm.tune.analysis import Analysis
    from collm.tune.corpus import Example


def analyze_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    data: Annotated[
        Path | None,
        typer.Option(help="A corpus of collm synthesize; default: answers the model writes now."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="About so many tokens are looked at.")] = 2000,
    cut: Annotated[
        int | None,
        typer.Option(help="Where paths of fewer layers end; default: the cut nearest to half."),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            help="File with what is known so far; the same command goes on from it. Default: in "
            "ARTIFACT-tune.",
            show_default=False,
        ),
    ] = None,
    threads: ThreadsOption = 0,
    plot: Annotated[
        Path | None, typer.Option(help="Draw a picture (PNG) into this file.", metavar="FILE")
    ] = None,
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
) -> None:
    """Rank the layers by what they cost and what leaving them out costs; find the best paths."""
    from collm.tune.analyze import AnalyzeConfig, analyzer

    output_file(out)
    output_file(plot)
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'collm[plot]'")
    opened = Artifact(artifact)
    chosen_cut = default_placement(opened.manifest) if cut is None else cut
    cores = thread_count(threads)
    known = work or tune_folder(artifact) / f"analysis-{chosen_cut:02d}.json"
    if known.is_dir():
        raise UsageError(f"--work {known}: a folder; expected a file, which may not exist yet")
    examples, text = text_for(opened, data, tokens, cores)
    config = AnalyzeConfig(
        examples=tuple(examples), text=text, cut=chosen_cut, work=known, threads=cores
    )
    with (
        counting_bar("loading", width=22, unit="runs") as progress,
        analyzer(opened, config, progress) as run,
    ):
        made = run.run()
    record = json.dumps(made.to_json())
    if out is not None:
        out.write_text(record + "\n", encoding="utf-8")
    if plot is not None:
        from collm.tune.analysis_plot import draw_analysis

        draw_analysis(made, plot)
    if as_json:
        typer.echo(record)
        return
    print_analysis(wide_console(110), made)


def text_for(
    artifact: Artifact, data: Path | None, tokens: int, threads: int
) -> tuple[list[Example], str]:
    """Examples with about `tokens` counted tokens, and in words where they are from."""
    from collm.tune.corpus import check_tokenizer, read_corpus
    from collm.tune.own_text import own_text
    from collm.tune.scores import choose_examples

    if data is None:
        with counting_bar("writing text", unit="tokens") as progress:
            made = own_text(artifact, tokens, threads=threads, progress=progress)
        return made, "the model's own greedy answers"
    corpus = read_corpus(data)
    check_tokenizer(corpus, artifact)
    return choose_examples(corpus, tokens), str(data)


def print_analysis(console: Console, made: Analysis) -> None:
    """The layers by rank, then the paths."""
    cut = made.cut
    columns = ["rank", "layer", "ms", "MB", "B a position", "change", "agreement", "KL"]
    columns += [f"exit {cut}", "in 3/4", "in 1/2"]
    table = plain_table(
        f"{made.model}: what leaving a layer out costs, {made.rows:,} tokens of {made.text}",
        columns,
    )
    for rank, one in enumerate(made.ranking(), 1):
        table.add_row(
            str(rank),
            str(one.layer),
            f"{1e3 * one.decode_seconds:.3f}",
            f"{one.weight_bytes / 1e6:.2f}",
            f"{one.kv_bytes:,}",
            f"{one.change:.3f}",
            f"{one.full_agreement:.1%}",
            f"{one.full_divergence:.3f}",
            f"{one.exit_agreement[cut]:.1%}" if cut in one.exit_agreement else "",
            f"{one.kept_importance(0.75):.0%}",
            f"{one.kept_importance(0.5):.0%}",
        )
    console.print(table)
    console.print(
        "ms: a call with two rows; change: 1 − cosine of input and output; agreement and KL: of "
        "the full model\nwithout the layer with itself; in 3/4, in 1/2: importance that so many "
        "of the feed-forward channels hold",
        style="dim",
        highlight=False,
    )
    exits = ", ".join(f"{at}: {share:.1%}" for at, share in made.exits.items())
    console.print(f"agreement of the exits with all layers: {exits}", highlight=False)
    paths = plain_table(
        f"The best paths found below layer {cut}, its exit not tuned for them",
        ["layers", "agreement", "ms", "MB", "left out"],
    )
    for subset in made.subsets:
        gone = [str(layer) for layer in range(cut) if layer not in subset.layers]
        paths.add_row(
            str(len(subset.layers)),
            f"{subset.agreement:.1%}",
            f"{1e3 * subset.decode_seconds:.2f}",
            f"{subset.weight_bytes / 1e6:.1f}",
            ", ".join(gone) or "none",
        )
    console.print(paths)
