"""`collm synthesize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from collm.cli.options import (
    DeviceOption,
    JsonOption,
    ThreadsOption,
    needs_torch,
    output_file,
    thread_count,
)
from collm.model.artifact import Artifact
from collm.tune.corpus_writer import Written
from collm.tune.progress import progress_bar
from collm.tune.texts import check_domain


def synthesize_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens in the whole corpus, at least.")],
    out: Annotated[Path, typer.Option(help="The corpus; one begun before is continued.")],
    text: Annotated[
        list[Path] | None,
        typer.Option(help="A text or source file, or a folder of them (repeatable)."),
    ] = None,
    prompts: Annotated[
        list[Path] | None,
        typer.Option(help="JSONL of prompts for the model to answer (repeatable)."),
    ] = None,
    domain: Annotated[
        str | None, typer.Option(help="Domain of texts and prompts that name none.")
    ] = None,
    text_share: Annotated[
        float, typer.Option(min=0, max=1, help="Most of the corpus that may be text.")
    ] = 1.0,
    prompt_share: Annotated[
        float, typer.Option(min=0, max=1, help="Most of it that may be answered prompts.")
    ] = 1.0,
    slots: Annotated[int, typer.Option(min=1, max=65536, help="Chats written at once.")] = 128,
    max_length: Annotated[int, typer.Option(min=8, help="Longest chat, in tokens.")] = 288,
    max_user: Annotated[int, typer.Option(min=1, help="Longest user turn, in tokens.")] = 64,
    held_out: Annotated[
        float, typer.Option(min=0, max=1, help="Share kept from training, to measure on.")
    ] = 0.06,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same corpus.")] = 0,
    threads: ThreadsOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Write text for tuning exits: the model's own chats, and texts and prompts given to it.

    Texts come first, then answers to the prompts, then chats that the model makes up.
    """
    needs_torch("synthesize")
    from collm.tune.device import pick_device, set_threads
    from collm.tune.synthesize import SynthesisConfig, Synthesizer

    output_file(out)
    if domain is not None:
        check_domain(domain, "--domain")
    opened = Artifact(artifact)
    set_threads(thread_count(threads))
    config = SynthesisConfig(
        out=out,
        tokens=tokens,
        texts=tuple(text or ()),
        prompts=tuple(prompts or ()),
        domain=domain,
        text_share=text_share,
        prompt_share=prompt_share,
        slots=slots,
        max_length=max_length,
        max_user=max_user,
        held_out=held_out,
        seed=seed,
    )
    with progress_bar() as bar:
        bar.disable = as_json
        task = bar.add_task("writing text", total=tokens)
        try:
            synthesizer = Synthesizer(opened, config, device=pick_device(device))
            written = synthesizer.run(lambda done: bar.update(task, completed=min(done, tokens)))
        except KeyboardInterrupt:
            typer.echo(f"interrupted; run the same command again to continue {out}", err=True)
            raise typer.Exit(130) from None
    account = _account(written, synthesizer.skipped)
    typer.echo(json.dumps(account) if as_json else f"{out}: {_line(account)}")


def _account(written: Written, skipped: int) -> dict[str, Any]:
    total = written.examples.total()
    return {
        "tokens": written.tokens.total(),
        "examples": dict(sorted(written.examples.items())),
        "held_out": round(written.held_out / total, 4) if total else 0.0,
        "user_turns": written.user_turns,
        "prompts_too_long": skipped,
    }


def _line(account: dict[str, Any]) -> str:
    domains = ", ".join(f"{count:,} {domain}" for domain, count in account["examples"].items())
    skipped = account["prompts_too_long"]
    return (
        f"{account['tokens']:,} tokens, {domains}; {account['held_out']:.1%} held out, "
        f"{account['user_turns']:,} distinct user turns"
        + (f"; {skipped:,} prompts left out as too long" if skipped else "")
    )
