"""`collm tune-policy`: train an exit policy on traces."""

from __future__ import annotations

import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from collm.cli.options import JsonOption, needs_torch, output_file
from collm.errors import UsageError
from collm.model.artifact import Artifact

_KINDS = "ppo, dqn or linucb"


def tune_policy_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    traces: Annotated[
        list[Path], typer.Option(help="A file made by collm trace (repeatable: joined).")
    ],
    out: Annotated[Path, typer.Option(help="The policy file to write.")],
    kind: Annotated[str, typer.Option(help=f"{_KINDS}.")] = "ppo",
    exits: Annotated[
        str | None, typer.Option(help="Layers, such as 10,20; default: all that were traced.")
    ] = None,
    steps: Annotated[
        int, typer.Option(min=0, help="Steps of reinforcement; 0 keeps the cloned start.")
    ] = 200_000,
    quality_weight: Annotated[
        float, typer.Option(help="Times the usual cost of wrong tokens and what follows.")
    ] = 1.0,
    cloud_weight: Annotated[
        float, typer.Option(help="Times the usual cost of asking the cloud.")
    ] = 1.0,
    latency_weight: Annotated[float, typer.Option(help="Times the usual cost of waiting.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same policy.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a policy that says at every exit whether its token is taken."""
    if kind not in ("ppo", "dqn", "linucb"):
        raise UsageError(f"--kind {kind}: expected {_KINDS}")
    needs_torch("tune-policy")
    if find_spec("stable_baselines3") is None:
        raise UsageError("collm tune-policy needs stable-baselines3: pip install 'collm[tune]'")
    output_file(out)
    from collm.cli.options import numbers
    from collm.model.policy_file import write_policy
    from collm.tune.policy_env import Weights
    from collm.tune.policy_training import train_policy
    from collm.tune.progress import progress_bar
    from collm.tune.trace_file import join_traces, read_traces

    opened = Artifact(artifact)
    usual = Weights()
    weights = Weights(
        cloud=usual.cloud * cloud_weight,
        latency=usual.latency * latency_weight,
        wrong=usual.wrong * quality_weight,
        consequence=usual.consequence * quality_weight,
    )
    joined = join_traces([read_traces(path, opened) for path in traces])
    if exits is not None:
        joined = joined.with_cuts(sorted(set(numbers("--exits", exits))))
    started = time.perf_counter()
    with progress_bar() as bar:
        task = bar.add_task("loading", total=None)
        made = train_policy(
            joined,
            kind,
            weights,
            steps=steps,
            seed=seed,
            progress=lambda what, done, total: bar.update(
                task, description=what, completed=done, total=total
            ),
        )
    write_policy(out, made.policy)
    about = {
        "policy": str(out),
        "kind": kind,
        "exits": list(made.policy.exits),
        "texts": joined.texts,
        "rows": len(joined),
        "reward": made.reward,
        "start_reward": made.start_reward,
        "always_cloud_reward": made.always_cloud,
        "wall_seconds": time.perf_counter() - started,
    }
    if as_json:
        typer.echo(json.dumps(about, indent=1))
        return
    typer.echo(
        f"{joined.texts} texts, {len(joined):,} tokens; reward per token on texts kept out: "
        f"{made.reward:.4f} (before reinforcement or learning {made.start_reward:.4f}, always "
        f"asking the cloud {made.always_cloud:.4f})"
    )
    if steps and kind != "linucb" and not made.policy.about["reinforced"]:
        typer.echo(f"{kind} did not raise it: the policy is the start, cloned from the traces")
    typer.echo(f"wrote {out} in {about['wall_seconds']:.0f} s")
    typer.echo(f"use it with: collm run {artifact} --mode threshold --criterion learned:{out}")
