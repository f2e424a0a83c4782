"""Every verb of `collm`: where it is, what it is for, and how it is used.

A verb's module is imported when the verb is run, not before: `collm --help` and `collm ps` load no
ONNX Runtime. A new verb gets a line in `GROUPS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """A command, by name."""

    name: str
    where: str
    """`module:function` below `collm.cli`, or `module:app` where it has commands of its own."""
    says: str
    """What it is for, in the list of all verbs."""
    examples: tuple[str, ...] = ()


GROUPS: tuple[tuple[str, tuple[Verb, ...]], ...] = (
    (
        "Use",
        (
            Verb(
                "run",
                "run:run_command",
                "Answer a prompt, each token coloured by where it was made",
                (
                    'collm run my-model "Why is the sky blue?" --cloud spawn',
                    'collm run my-model "Tell me a joke." --cloud 10.0.0.5:50051 --placement 15',
                ),
            ),
            Verb(
                "chat",
                "chat:chat_command",
                "Talk with a model in the terminal",
                (
                    "collm chat my-model --cloud spawn",
                    "collm chat http://127.0.0.1:8000",
                    'echo "Say hello." | collm chat my-model --mode standalone',
                ),
            ),
            Verb(
                "demo", "demo:demo_command", "See the embedded model shared between two processes"
            ),
        ),
    ),
    (
        "Serve",
        (
            Verb(
                "serve",
                "serve:serve_command",
                "Serve OpenAI's API and a chat page",
                (
                    "collm serve my-model --cloud spawn",
                    "collm serve my-model --cloud 10.0.0.5:50051 --placement 15 --port 8080",
                ),
            ),
            Verb(
                "cloud",
                "cloud:cloud_command",
                "Serve the deeper layers to edges",
                (
                    "collm cloud my-model --listen 127.0.0.1:50051",
                    "collm cloud my-model --listen 0.0.0.0:50051 --tls-cert c.pem --tls-key c.key",
                ),
            ),
            Verb("ps", "ps:ps_command", "List what runs on this machine"),
            Verb(
                "top",
                "top:top_command",
                "Watch a cloud or a server at work",
                ("collm top", "collm top 127.0.0.1:9100 --once --json"),
            ),
        ),
    ),
    (
        "Share out",
        (
            Verb(
                "pull",
                "pull:pull_command",
                "Fetch what a device needs of an artifact",
                (
                    "collm pull http://10.0.0.5:50080 edge-model --placement 15",
                    "collm pull http://10.0.0.5:50080 --all",
                ),
            ),
            Verb("list", "store:list_command", "List the artifacts on this machine"),
            Verb(
                "rm",
                "store:rm_command",
                "Remove artifacts, and what nothing else needs",
                ("collm rm SmolLM2-135M-Instruct", "collm rm ./edge-model --yes"),
            ),
            Verb("profile", "profile:profile_command", "Measure what this device can do"),
            Verb("probe", "profile:probe_command", "Measure the link to a cloud"),
            Verb("plan", "plan:plan_command", "Find the best way to answer here"),
            Verb("link", "link:link_command", "Pass connections on as a slow, faulty link would"),
        ),
    ),
    (
        "Make and tune",
        (
            Verb("build", "build:build_command", "Turn a checkpoint into an artifact"),
            Verb("info", "info:info_command", "Say what an artifact is made of"),
            Verb("add-exit", "build:add_exit_command", "Add a trained exit to an artifact"),
            Verb("synthesize", "synthesize:synthesize_command", "Write text to tune exits with"),
            Verb("tune", "tune:tune_command", "Train exits from the model's own text"),
            Verb("calibrate", "calibrate:calibrate_command", "Choose thresholds with a guarantee"),
            Verb("compress", "compress:compress_command", "Make a draft path for a small device"),
            Verb("trace", "trace:trace_command", "Record what exits and the full model say"),
            Verb("tune-policy", "tune_policy:tune_policy_command", "Learn when to trust an exit"),
        ),
    ),
    (
        "Measure",
        (
            Verb("eval", "eval:evaluation", "Measure how good exits, policies and modes are"),
            Verb("analyze", "analyze:analyze_command", "Say what each layer costs and is worth"),
            Verb("bench", "bench:bench", "Measure speed, against baselines in the same run"),
        ),
    ),
    (
        "Care",
        (
            Verb(
                "doctor",
                "doctor:doctor_command",
                "Check installation, artifact and cloud; say what to do",
                (
                    "collm doctor my-model --deep",
                    "collm doctor my-model --cloud 10.0.0.5:50051 --ca ca.pem --token-file token",
                ),
            ),
            Verb("config", "config:config", "Show where each setting comes from"),
        ),
    ),
)


def all_verbs() -> Iterator[Verb]:
    """In the order of the help."""
    for _, verbs in GROUPS:
        yield from verbs
