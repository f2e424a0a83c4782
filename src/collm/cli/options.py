"""Options that several verbs share, and what they parse into."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from collm.config import Constraint
from collm.errors import PlacementError, UsageError
from collm.limits import DEFAULT_LIMITS

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
ThreadsOption = Annotated[
    int, typer.Option(min=0, max=256, help="Compute threads; 0 takes what the machine has.")
]
CriterionOption = Annotated[
    str,
    typer.Option(
        help="What an exit's token must meet, such as 'margin:0.5 & coherence' (docs/modes.md); "
        "default: confidence and --threshold."
    ),
]
WireOption = Annotated[
    str,
    typer.Option(
        help="How positions travel: hidden states as f32, f16, int8 or int4, or ids alone (the "
        "cloud runs the edge's layers itself); auto, in modes auto and verified, measures first."
    ),
]
MetricsOption = Annotated[
    str, typer.Option(help="HOST:PORT where Prometheus reads /metrics; empty: nowhere.")
]
CloudOption = Annotated[
    str | None,
    typer.Option(
        help="HOST:PORT of a cloud, or of several, separated by commas: the next one where one "
        "fails; or spawn to start one here."
    ),
]
RouteOption = Annotated[
    str,
    typer.Option(
        help="Which of several clouds an answer goes to: order (the first that answers) or "
        "measured (the quickest, by latency, load and health)."
    ),
]
PlacementOption = Annotated[
    str | None,
    typer.Option(
        help="Layers on the edge: a cut, 0, or all of them; auto: what collm plan finds best."
    ),
]
ExitsOption = Annotated[
    str | None, typer.Option(help="Exits in use, such as 5,15; default: all on the edge.")
]
ThresholdOption = Annotated[
    float, typer.Option(help="Confidence from which an exit's token is taken, 0 to 1.")
]
DeadlineOption = Annotated[
    float, typer.Option(help="Milliseconds from token to token, in mode threshold; 0: none.")
]
DraftOption = Annotated[int, typer.Option(help="Most tokens drafted before the cloud is asked.")]
BatchOption = Annotated[int, typer.Option(help="Hidden states in one message, in mode verified.")]
AheadOption = Annotated[
    float | None,
    typer.Option(
        help="Mode verified: while a verdict is awaited, draft on from guesses of this "
        "confidence, 0 to 1; default: wait."
    ),
]
LookupOption = Annotated[
    bool, typer.Option("--lookup", help="Also draft from the text so far, in mode verified.")
]
TemperatureOption = Annotated[float, typer.Option(help="0 is greedy.")]
TopKOption = Annotated[int, typer.Option(help="Sample among the k likeliest; 0 is off.")]
TopPOption = Annotated[float, typer.Option(help="Sample among the likeliest up to this sum.")]
RepetitionOption = Annotated[float, typer.Option(help="1 is off.")]
JsonSchemaOption = Annotated[
    str,
    typer.Option(
        "--json-schema",
        metavar="FILE|TEXT",
        help="The answer is JSON that obeys this schema ({} allows any), unless --max-tokens cuts "
        "it off.",
    ),
]
TopLogprobsOption = Annotated[
    int, typer.Option(help="With --json: so many of the likeliest tokens beside each, 0 to 20.")
]
LogOption = Annotated[str, typer.Option(help="Log as text, or as a JSON object a line.")]
TlsCertOption = Annotated[
    Path | None, typer.Option(help="PEM certificate of this server, for TLS.")
]
TlsKeyOption = Annotated[Path | None, typer.Option(help="PEM key of that certificate.")]
InsecureOption = Annotated[
    bool,
    typer.Option("--insecure", help="Let other machines in, without encryption or authentication."),
]
DeviceOption = Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu or cuda.")]


def tune_folder(artifact: Path) -> Path:
    """Where `collm tune` keeps a run, and its corpus, unless told otherwise."""
    return artifact.with_name(f"{artifact.resolve().name}-tune")


def needs_torch(verb: str) -> None:
    """Refuse a verb that PyTorch is missing for; edge devices do without it."""
    if find_spec("torch") is None:
        raise UsageError(f"collm {verb} needs PyTorch: pip install 'collm[tune]'")


def given_options(context: typer.Context) -> frozenset[str]:
    """Names of the parameters whose values are the user's."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return frozenset(n for n, source in sources.items() if source and source.name != "DEFAULT")


def output_file(path: Path | None) -> None:
    """Refuse a file that could not be written, before any work is done for it."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise UsageError(f"{path}: cannot be written; expected a file in a folder that exists")


def numbers(option: str, text: str) -> list[int]:
    """Comma-separated layer numbers."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise PlacementError(
            f"{option} {text!r}: expected layer numbers separated by commas, such as 5,15"
        ) from None


def layer_count(option: str, text: str) -> int:
    """How many layers."""
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise PlacementError(f"{option} {text[:40]!r}: expected a number of layers, or auto")
    return int(text)


def byte_count(option: str, text: str) -> int:
    """Bytes of `512mb` or `4gb`; 1 kB = 1000 B."""
    match = re.fullmatch(r"([0-9]{1,9})(kb|mb|gb|tb)", text.lower())
    if match is None or not int(match[1]):
        raise UsageError(f"{option} {text[:40]!r}: expected a size such as 512mb or 4gb")
    units = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
    return int(match[1]) * units[match[2]]


def json_schema(given: str) -> Constraint | None:
    """The constraint of --json-schema: a file's text, or what begins with a brace itself."""
    if not given:
        return None
    text = given
    if not given.lstrip().startswith("{"):
        try:
            with open(given, encoding="utf-8") as file:
                text = file.read(DEFAULT_LIMITS.max_constraint_bytes + 1)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise UsageError(
                f"--json-schema {given[:80]!r}: {reason}; expected a file, or a schema: {{…}}"
            ) from None
    return Constraint(kind="json_schema", text=text)


def thread_count(threads: int, processes: int = 1) -> int:
    """`threads`, or this machine's cores shared among so many processes."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return threads or max(1, (available or 1) // processes)
