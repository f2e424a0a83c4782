"""`collm eval policy`: exit criteria side by side on traces of held-out text."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Annotated

import typer

from collm.cli.options import JsonOption, output_file
from collm.cli.show import wide_console
from collm.errors import UsageError
from collm.model.artifact import Artifact


def eval_policy_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    traces: Annotated[
        list[Path], typer.Option(help="A file made by collm trace (repeatable: joined).")
    ],
    policy: Annotated[
        list[Path] | None,
        typer.Option(help="A file made by collm tune-policy (repeatable); its bias is swept."),
    ] = None,
    criterion: Annotated[
        list[str] | None,
        typer.Option(help="A criterion to show as one point (repeatable)."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw plots (PNG) into this folder.", metavar="DIR")
    ] = None,
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
) -> None:
    """Cloud work against agreement, and whether anything beats the best fixed threshold."""
    from collm.session.policies import load_criterion
    from collm.tune.policy_families import open_policy
    from collm.tune.policy_report import make_policy_report, print_policy_report
    from collm.tune.progress import progress_bar
    from collm.tune.trace_file import join_traces, read_traces

    output_file(out)
    if plot is not None:
        if plot.exists() and not plot.is_dir():
            raise UsageError(f"--plot {plot}: a file; expected a folder, which may not exist yet")
        if importlib.util.find_spec("matplotlib") is None:
            raise UsageError("--plot needs matplotlib: pip install 'collm[plot]'")
    opened = Artifact(artifact)
    criteria = [load_criterion(spec, opened) for spec in criterion or []]
    policies = {f"learned {path.stem}": open_policy(path, opened) for path in policy or []}
    joined = join_traces([read_traces(path, opened) for path in traces])
    for opened_policy in policies.values():
        joined.with_cuts(opened_policy.exits)  # refuses at once what was not traced
    with progress_bar() as bar:
        task = bar.add_task("sweeping", total=None)
        report = make_policy_report(
            joined,
            ", ".join(map(str, traces)),
            policies,
            criteria,
            progress=lambda what: bar.update(task, description=what),
        )
    text = json.dumps(report.to_json(), indent=1)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    plots: list[Path] = []
    if plot is not None:
        from collm.tune.policy_plot import draw_policy_plots

        plots = draw_policy_plots(report, plot)
    if as_json:
        typer.echo(text)
        return
    print_policy_report(wide_console(120), report)
    for path in plots:
        typer.echo(f"wrote {path}")
