"""`collm eval quality`: what modes and criteria cost in quality, and what they save."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from collm.bench.datasets import Item, choose_items, read_data
from collm.bench.quality_settings import Setting, cross_settings, parse_setting, with_baseline
from collm.cli.options import JsonOption, ThreadsOption, WireOption, numbers, thread_count
from collm.cli.progress import counting_bar
from collm.cli.run import cloud_link, default_placement
from collm.cli.show import wide_console
from collm.errors import PromptError, UsageError
from collm.model.artifact import Artifact

_HEADER_BYTES = 2**16
MODES = "verified,threshold,refine,standalone"


def eval_quality_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    data: Annotated[
        Path,
        typer.Option(
            help="Prompts (JSONL), Alpaca, XSum, CNN/DailyMail, TruthfulQA, HumanEval, a .txt, or "
            "a corpus of collm synthesize (its held-out part)."
        ),
    ],
    modes: Annotated[
        str | None,
        typer.Option(help=f"Separated by commas; default: {MODES}, or none beside --setting."),
    ] = None,
    criterion: Annotated[
        list[str] | None,
        typer.Option(help="For modes threshold and standalone, such as confidence:0.8 (repeat)."),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            help="A mode, then name=value, such as 'threshold criterion=margin:0.5 wire=f16 "
            "exits=5,15 placement=15' (repeat)."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Also show every setting less this one, by its name in the tables."),
    ] = None,
    placement: Annotated[
        int | None, typer.Option(help="Layers on the edge; default: the cut nearest to half.")
    ] = None,
    exits: Annotated[
        str | None, typer.Option(help="Exits in use, such as 5,15; default: all on the edge.")
    ] = None,
    wire: WireOption = "f32",
    tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 96,
    prompt_tokens: Annotated[
        int, typer.Option(min=16, help="Longer articles and passages are cut to this.")
    ] = 512,
    limit: Annotated[
        int | None, typer.Option(min=1, help="So many prompts, domains in turn; default: all.")
    ] = None,
    domain: Annotated[
        list[str] | None, typer.Option(help="Only prompts of this domain (repeat).")
    ] = None,
    cloud: Annotated[
        str, typer.Option(help="HOST:PORT of a cloud, or spawn to start one here.")
    ] = "spawn",
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw plots (PNG) into this folder.", metavar="DIR")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Keep answers and report.json here; a run broken off goes on.", metavar="DIR"
        ),
    ] = None,
) -> None:
    """Quality against cloud work, for every mode and criterion, beside the full model's text."""
    from collm.bench.quality import Bench, header_of, read_prompts
    from collm.bench.quality_answers import AnswerFile
    from collm.bench.quality_measure import needs_rouge
    from collm.bench.quality_report import make_report
    from collm.bench.quality_table import print_report
    from collm.cli.eval import can_plot
    from collm.session.policies import load_criterion

    needs_rouge()
    if plot is not None:
        can_plot(plot)
    opened = Artifact(artifact)
    defaults = Setting(
        mode="threshold",
        placement=default_placement(opened.manifest) if placement is None else placement,
        exits=None if exits is None else tuple(numbers("--exits", exits)),
        wire=wire,
    )
    chosen = choose_settings(modes, criterion or [], setting or [], defaults)
    for one in chosen:
        if one.criterion:
            load_criterion(one.criterion, opened)  # one that is wrong: say so before anything runs
    compared = None if against is None else _named(against, chosen)
    prompts = read_prompts(
        opened,
        choose_items(read_items(data, opened), domain or [], limit),
        prompt_tokens=prompt_tokens,
        max_tokens=tokens,
    )
    cores = thread_count(threads, processes=2 if cloud == "spawn" else 1)
    header = header_of(
        opened, data, max_tokens=tokens, prompt_tokens=prompt_tokens, cloud=cloud, threads=cores
    )
    kept = AnswerFile(out, header)
    if others := kept.others({s.key for s in chosen}):
        typer.echo(f"{out}: {others}", err=True)
    answers = kept.of([s.key for s in chosen], [prompt.digest for prompt in prompts.chosen])
    if answers is None:
        with (
            cloud_link(artifact, cloud, cores) as linked,
            counting_bar("loading", width=40, timed=False) as progress,
        ):
            assert linked is not None
            bench = Bench(opened, chosen, linked, max_tokens=tokens, threads=cores)
            answers = bench.run(prompts.chosen, kept, progress)
    report = make_report(
        opened, chosen, answers, prompts, header, data=str(data), compared=compared
    )
    text = json.dumps(report.to_json(), indent=1)
    if out is not None:
        (out / "report.json").write_text(text + "\n", encoding="utf-8")
    plots: list[Path] = []
    if plot is not None:
        from collm.bench.quality_plot import draw_plots

        plots = draw_plots(report, plot)
    if as_json:
        typer.echo(text)
        return
    # Wide enough for the tables also where the output is no terminal.
    print_report(wide_console(140), report)
    for path in plots:
        typer.echo(f"wrote {path}")


def choose_settings(
    modes: str | None, criteria: Sequence[str], written: Sequence[str], defaults: Setting
) -> list[Setting]:
    """The baseline, modes crossed with criteria, and those written out; each once."""
    if modes is None:
        names = [] if written else MODES.split(",")
    else:
        names = [name.strip() for name in modes.split(",")]
    if criteria and not names:
        raise PromptError("--criterion goes with --modes; in a --setting write criterion=…")
    crossed = cross_settings(names, criteria, defaults)
    return with_baseline([*crossed, *(parse_setting(text, defaults) for text in written)])


def _named(label: str, settings: Sequence[Setting]) -> Setting:
    found = next((s for s in settings if s.label == label), None)
    if found is None:
        raise PromptError(
            f"--against {label!r}: expected one of {', '.join(repr(s.label) for s in settings)}"
        )
    return found


def read_items(data: Path, artifact: Artifact) -> list[Item]:
    """The prompts of any data file, or of the held-out part of a corpus for this artifact."""
    if not _is_corpus(data):
        return read_data(data)
    from collm.tune.corpus import check_tokenizer, read_corpus

    corpus = read_corpus(data)
    check_tokenizer(corpus, artifact)
    tokenizer, items = artifact.tokenizer(), []
    for example in corpus.held_out:
        ids = example.ids.tolist()
        # A chat up to its answer; of plain text the first half, to be gone on with.
        first = example.first if example.greedy is not None else max(1, len(ids) // 2)
        items.append(
            Item(
                ids=tuple(ids[:first]),
                is_chat=example.greedy is not None,
                # What the model itself wrote is no reference.
                reference=tokenizer.decode(ids[first:]) if example.greedy is None else None,
                domain=example.domain,
            )
        )
    if not items:
        raise UsageError(
            f"{data}: no held-out examples; make a larger corpus with: collm synthesize"
        )
    return items


def _is_corpus(data: Path) -> bool:
    try:
        with data.open("rb") as file:
            return b'"collm-corpus"' in file.readline(_HEADER_BYTES)
    except OSError:
        return False  # `read_data` says what is wrong
