"""`collm bench plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from collm.bench.cgroups import parse_device
from collm.bench.plan_bench import PlanOptions, measure
from collm.cli.options import JsonOption, output_file
from collm.cli.plan import words_of
from collm.cli.profile import RECORDED_TOKENS, recorded_prompts
from collm.cli.progress import counting_bar
from collm.cli.prompts import PROMPTS, prompt_ids
from collm.cli.show import megabytes, plain_table
from collm.link.shapes import parse_link
from collm.model.artifact import Artifact
from collm.policy.cost_model import Candidate
from collm.session.planning import acceptance

_DEVICES = "1@25:150mb,1:300mb,2:1000mb"
_LINKS = "rtt:100ms@1mbit,rtt:40ms@10mbit,rtt:10ms@30mbit,rtt:3ms@100mbit"


def plan_bench_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    devices: Annotated[
        str, typer.Option(help="Emulated ones: CORES[@PERCENT]:MEMORY, separated by commas.")
    ] = _DEVICES,
    links: Annotated[str, typer.Option(help="Shaped ones, separated by commas.")] = _LINKS,
    tokens: Annotated[
        int, typer.Option(min=4, max=RECORDED_TOKENS, help="Of every answer.")
    ] = RECORDED_TOKENS,
    prompts: Annotated[
        int, typer.Option(min=1, max=len(PROMPTS), help="How many of the built-in ones are asked.")
    ] = 2,
    out: Annotated[
        Path, typer.Option(help="JSON lines as they are measured; a run that was ended goes on.")
    ] = Path("plan-bench.jsonl"),
    as_json: JsonOption = False,
) -> None:
    """Compare plans with what a sweep measures, on emulated devices and shaped links."""
    output_file(out)
    opened = Artifact(artifact)
    tokenizer = opened.tokenizer()
    with counting_bar("recording what exits say") as progress:
        acceptance(
            opened, recorded_prompts(opened, None), tokens=RECORDED_TOKENS, progress=progress
        )
        options = PlanOptions(
            devices=tuple(parse_device(one) for one in devices.split(",")),
            links=tuple(parse_link(one) for one in links.split(",")),
            tokens=tokens,
            prompts=tuple(
                tuple(prompt_ids(tokenizer, text, raw=False)) for text in PROMPTS[:prompts]
            ),
            out=out,
        )
        found = measure(Artifact(artifact), options, progress)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _show(found, opened.architecture.layers)


def _show(found: dict[str, Any], layers: int) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=170)
    figures = ["predicted", "measured", "best", "of best", "peak", "model"]
    table = plain_table(
        "Tokens/s of the plan and of the best of the sweep", ["device", "link", "plan", *figures]
    )
    for cell in found["cells"]:
        plan, best = (
            words_of(Candidate(**{**cell[name], "exits": tuple(cell[name]["exits"])}), layers)
            for name in ("plan", "best")
        )
        errors = np.array(cell["errors"]) if cell["errors"] else np.array([np.nan])
        low, middle, high = np.quantile(errors, [0.1, 0.5, 0.9])
        peak = megabytes(cell["peak_bytes"]) if cell["peak_bytes"] else "?"
        table.add_row(
            cell["device"],
            cell["link"],
            plan,
            f"{cell['predicted_tokens_per_second']:.1f}",
            f"{cell['measured_tokens_per_second']:.1f}",
            f"{cell['best_tokens_per_second']:.1f} ({best})",
            f"{cell['of_best']:.2f}",
            peak if cell["fits"] else "KILLED",
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
        )
    console.print(table)
    count = len(found["cells"])
    console.print(
        f"within 10 % of the best measured: {found['within_10_percent']} of {count} cells; "
        f"{'all plans fitted' if found['all_fit'] else 'A PLAN DID NOT FIT'}; model: predicted by "
        "measured seconds over the sweep, median (10 % to 90 %)",
        soft_wrap=True,
    )
    for name in sorted({cell["device"] for cell in found["cells"]}):
        enforced = next(c["enforced"] for c in found["cells"] if c["device"] == name)
        console.print(f"{name}: enforced by the system: {', '.join(enforced)}")
