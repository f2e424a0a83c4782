"""`python -m collm.tune synthesize|distill|export|all`: make the exits that CoLLM ships.

`python -m collm.tune all` makes exits like the shipped ones: the same settings, but other text,
since what is sampled depends on the machine and on where a run was interrupted.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from collm.errors import CollmError

if TYPE_CHECKING:
    from collm.tune.backbone import Backbone
    from collm.tune.export import ExitReport

CUTS = "5,10,15,20"
BASE = "smollm2-135m-instruct"
SOURCE = "smollm2"
EXITS = Path(__file__).parent.parent / "assets" / "exits" / BASE
WORK = Path("collm-tune")

app = typer.Typer(
    help="Make exit heads: self-generated chat, distillation, export.", no_args_is_help=True
)
Source = Annotated[
    str, typer.Option(help="The model, as for `collm build`: smollm2, a GGUF file or a folder.")
]
Work = Annotated[
    Path, typer.Option(help="Folder for the chat (5.8 kB a token) and the checkpoint.")
]
Cuts = Annotated[str, typer.Option(help="Layers after which there is an exit.")]
Tokens = Annotated[int, typer.Option(min=1, help="Tokens of chat to write, prompts included.")]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the chat.")]
LearningRate = Annotated[float, typer.Option(min=0.0, help="Peak learning rate.")]
Shortlist = Annotated[
    int, typer.Option(min=32, help="Tokens an exit can choose; a multiple of 32.")
]
Out = Annotated[Path, typer.Option(help="Folder for exit-<cut>.safetensors.", show_default=False)]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves the choice to PyTorch.")]


@app.command("synthesize")
def synthesize_command(
    source: Source = SOURCE,
    work: Work = WORK,
    cuts: Cuts = CUTS,
    tokens: Tokens = 146_000,
    threads: Threads = 0,
) -> None:
    """Let the model write chat; again to continue."""
    _synthesize(_backbone(source, threads), work, _parse_cuts(cuts), tokens)


@app.command("distill")
def distill_command(
    source: Source = SOURCE,
    work: Work = WORK,
    cuts: Cuts = CUTS,
    epochs: Epochs = 6,
    learning_rate: LearningRate = 1e-3,
    shortlist: Shortlist = 10_240,
    threads: Threads = 0,
) -> None:
    """Train the exits on the chat; again to continue."""
    _distill(
        _backbone(source, threads),
        work,
        _parse_cuts(cuts),
        epochs,
        learning_rate,
        shortlist,
        threads,
    )


@app.command("export")
def export_command(
    source: Source = SOURCE,
    work: Work = WORK,
    cuts: Cuts = CUTS,
    out: Out = EXITS,
    threads: Threads = 0,
) -> None:
    """Quantise, calibrate, measure and write the exits."""
    _export(_backbone(source, threads), work, _parse_cuts(cuts), out)


@app.command("all")
def all_command(
    source: Source = SOURCE,
    work: Work = WORK,
    cuts: Cuts = CUTS,
    tokens: Tokens = 146_000,
    epochs: Epochs = 6,
    learning_rate: LearningRate = 1e-3,
    shortlist: Shortlist = 10_240,
    out: Out = EXITS,
    threads: Threads = 0,
) -> None:
    """Synthesize, distill and export: about an hour on two cores."""
    backbone = _backbone(source, threads)
    _synthesize(backbone, work, _parse_cuts(cuts), tokens)
    _distill(backbone, work, _parse_cuts(cuts), epochs, learning_rate, shortlist, threads)
    _export(backbone, work, _parse_cuts(cuts), out)


def _parse_cuts(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}: expected layer numbers with commas, as in {CUTS}"
        ) from None


def _backbone(source: str, threads: int) -> Backbone:
    import torch

    from collm.tune.backbone import load_backbone

    if threads:
        torch.set_num_threads(threads)
    return load_backbone(source)


def _synthesize(backbone: Backbone, work: Path, cuts: tuple[int, ...], tokens: int) -> None:
    from collm.tune.synthesize import SynthesisConfig, synthesize

    synthesize(backbone, SynthesisConfig(folder=work / "chat", cuts=cuts, tokens=tokens))


def _distill(
    backbone: Backbone,
    work: Path,
    cuts: tuple[int, ...],
    epochs: int,
    learning_rate: float,
    shortlist: int,
    threads: int,
) -> None:
    from collm.tune.distill import DistillConfig, distill

    config = DistillConfig(
        corpus=work / "chat",
        checkpoint=work / "heads.safetensors",
        cuts=cuts,
        epochs=epochs,
        learning_rate=learning_rate,
        shortlist=shortlist,
        threads=threads,
    )
    distill(backbone, config)


def _export(backbone: Backbone, work: Path, cuts: tuple[int, ...], out: Path) -> None:
    from collm.tune.export import export

    reports = export(
        backbone,
        corpus=work / "chat",
        checkpoint=work / "heads.safetensors",
        cuts=cuts,
        folder=out,
        base=BASE,
    )
    Console().print(_table(reports))


def _table(reports: list[ExitReport]) -> Table:
    table = Table(title=f"held-out chat, {reports[0].rows} answer tokens")
    for heading in ("cut", "agreement f32", "int8", "temperature", "shortlist covers"):
        table.add_column(heading, justify="right")
    levels = list(reports[0].sure)
    for level in levels:
        table.add_column(f"right / tokens at {level}", justify="right")
    for report in reports:
        sure = (f"{precision:.1%} / {coverage:.1%}" for precision, coverage in report.sure.values())
        shares = (f"{report.agreement_f32:.1%}", f"{report.agreement:.1%}")
        table.add_row(
            str(report.cut),
            *shares,
            f"{report.temperature:.2f}",
            f"{report.shortlist_coverage:.2%}",
            *sure,
        )
    return table


def main() -> None:
    """Entry point: a user's error is one line on stderr and exit code 2."""
    if importlib.util.find_spec("torch") is None:
        print("collm.tune needs PyTorch: pip install 'collm[tune]'", file=sys.stderr)
        raise SystemExit(2)
    try:
        app()
    except CollmError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
