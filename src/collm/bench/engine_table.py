"""What `collm bench engine` found, for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from collm.bench.contestants import Task
from collm.bench.engine_report import Comparison, EngineReport
from collm.bench.stats import Ratio


def print_report(console: Console, report: EngineReport) -> None:
    """Machine, speed, ratios, agreement, noise."""
    options = report.options
    _print_setting(console, report)
    decode = (
        f"Decode: {options.tokens} tokens after a prompt of {report.prompt_tokens}, greedy, "
        "prefill not counted"
    )
    console.print(_speed(report, "decode", decode))
    prefill = f"Prefill: {options.prefill} tokens from an empty cache to the next token"
    console.print(_speed(report, "prefill", prefill))
    rest = [c for c in report.ratios if c.baseline != "llama.cpp"]
    if rest:
        console.print(_ratios(rest))
    if report.agreement:
        console.print(_agreement(report))


def _print_setting(console: Console, report: EngineReport) -> None:
    machine, options = report.machine, report.options
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    trials = "; ".join(
        f"{t.config}: {t.decode_seconds * 1e3:.2f} ms/token, prefill {1 / t.prefill_seconds:.0f} "
        "tokens/s"
        for t in report.trials
    )
    extensions = ", ".join(machine.instructions) or "no known extensions"
    cores = f"{machine.usable_cores} of {machine.cores} cores, {machine.memory_bytes / 1e9:.0f} GB"
    load = f"load average {report.load_before:.1f} before, {report.load_after:.1f} after"
    lines = [
        f"[b]{report.model}[/b], {report.weights} weights ({report.artifact}) against llama.cpp",
        f"file        {report.gguf}"
        + ("" if report.same_source else " [b](not what the artifact was built from)[/b]"),
        f"machine     {machine.cpu} ({extensions}), {cores}, {machine.system}",
        f"versions    {versions}",
        f"llama.cpp   {report.llama_system.strip()}",
        f"tried       {trials}",
        f"taken       decode: {report.llama_decode}; prefill: {report.llama_prefill}",
        f"run         {options.threads} thread(s), {options.rounds} rounds, order rotated; {load}",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _speed(report: EngineReport, task: Task, title: str) -> Table:
    table = _table(title, "tokens/s", "ms/token", "25-75 %", "noise (CV)", "CPU share")
    table.add_column("× llama.cpp", justify="right")
    table.add_column("per round, 25-75 %", justify="right")
    against = {(c.task, c.name): c.ratio for c in report.ratios if c.baseline == "llama.cpp"}
    for result in report.results:
        if result.task != task:
            continue
        time, ratio = result.seconds, against.get((task, result.name))
        table.add_row(
            result.name,
            f"{1 / time.median:.1f}",
            f"{time.median * 1e3:.2f}",
            f"{time.p25 * 1e3:.2f}-{time.p75 * 1e3:.2f}",
            f"{time.variation:.1%}",
            f"{result.cpu_share:.0%}",
            *_ratio_cells(ratio),
        )
    return table


def _ratios(comparisons: list[Comparison]) -> Table:
    table = _table("Standalone against full depth", "× as fast", "per round, 25-75 %")
    for c in comparisons:
        table.add_row(f"{c.name} / {c.baseline}", *_ratio_cells(c.ratio))
    return table


def _agreement(report: EngineReport) -> Table:
    total = next(iter(report.agreement.values())).total
    table = _table(
        f"Same argmax as the dequantised fp32 model, {total:,} tokens of chat text",
        "agreement",
        "± (95 %)",
    )
    for name, share in report.agreement.items():
        table.add_row(name, f"{share.value:.1%}", f"{share.margin:.1%}")
    return table


def _ratio_cells(ratio: Ratio | None) -> tuple[str, str]:
    if ratio is None:
        return "1", ""
    return f"{ratio.of_medians:.2f}", f"{ratio.p25:.2f}-{ratio.p75:.2f}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table
