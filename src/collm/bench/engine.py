"""`collm bench engine`: our stage against llama.cpp, on one machine, in one run.

::

    servers = every configuration of llama.cpp, suspended while not asked
    keep the one that decodes fastest and the one that prefills fastest
    for every round: measure every contestant once, in a rotated order
    medians, spreads, ratios within rounds
    agreement of every contestant with the dequantised fp32 model

Not covered: several sessions at once, GPUs, links.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from collm.bench.agreement import (
    QUESTIONS,
    ArgmaxesOf,
    chat_prompt,
    exact_argmaxes,
    llama_argmaxes,
    measure_agreement,
    stepwise_argmaxes,
    write_answers,
)
from collm.bench.contestants import Contestant, LlamaDecode, LlamaPrefill, Sample, Work
from collm.bench.engine_report import EngineOptions, EngineReport, Result, compare
from collm.bench.engine_stages import EXACT, FAST, Stages, load_stages, our_contestants
from collm.bench.failures import UnusableSetting, require
from collm.bench.llama_cpp import CONFIGS, LlamaCpp
from collm.bench.llama_trial import TRIAL_ROUNDS, best, try_configurations
from collm.bench.machine import load_average, this_machine
from collm.bench.reference import Reference
from collm.bench.stats import Share, rotated
from collm.model.artifact import Artifact
from collm.model.files import sha256_of
from collm.model.tokenizer import Tokenizer

Progress = Callable[[str, int, int], None]
"""What is going on, how many steps of it are done, of how many."""

LLAMA = "llama.cpp"


def run_engine(
    artifact: Artifact, gguf: Path, options: EngineOptions, progress: Progress
) -> EngineReport:
    """Measure. Raises MissingPackage, UnusableSetting, PlacementError, BaselineFailed."""
    require("xllamacpp", *(("torch", "transformers") if options.agreement_tokens else ()))
    tokenizer, load_before = artifact.tokenizer(), load_average()
    work = the_work(tokenizer, options, artifact.architecture.context_length)
    with ExitStack() as stack:
        progress("loading", 0, len(CONFIGS))
        stages = load_stages(artifact, options)
        servers = _servers(gguf, options, work, stack)
        steps = iter(range(1, TRIAL_ROUNDS * len(servers) + 1))
        trials = try_configurations(
            servers,
            work.prompt,
            work.long_prompt,
            lambda: progress("trying llama.cpp", next(steps), TRIAL_ROUNDS * len(servers)),
        )
        for_decode, for_prefill = best(trials)
        chosen = {s.config: s for s in servers if s.config in (for_decode, for_prefill)}
        for server in servers:
            if server.config not in chosen:
                server.close()
        contestants: list[Contestant] = [
            *our_contestants(stages, options, work),
            LlamaDecode(name=LLAMA, server=chosen[for_decode], threads=options.threads, work=work),
            LlamaPrefill(
                name=LLAMA, server=chosen[for_prefill], threads=options.threads, work=work
            ),
        ]
        results = _rounds(contestants, options.rounds, progress)
        load_after = load_average()
        shares: dict[str, Share] = {}
        if options.agreement_tokens:
            shares = _agreement(gguf, tokenizer, stages, chosen[for_decode], options, progress)
        return EngineReport(
            machine=this_machine(),
            llama_system=servers[0].system,
            artifact=str(artifact.folder),
            model=artifact.manifest.name,
            weights=artifact.manifest.weights,
            fingerprint=artifact.fingerprint,
            gguf=str(gguf),
            same_source=sha256_of(gguf) == artifact.manifest.source_sha256,
            options=options,
            exit_cut=stages.cut,
            prompt_tokens=len(work.prompt),
            trials=trials,
            llama_decode=for_decode,
            llama_prefill=for_prefill,
            load_before=load_before,
            load_after=load_after,
            results=results,
            ratios=compare(results, EXACT, FAST, LLAMA, stages.standalone_name),
            agreement=shares,
        )


def the_work(tokenizer: Tokenizer, options: EngineOptions, context: int) -> Work:
    """The ids that everybody is given. Raises UnusableSetting where they do not fit."""
    prompt = chat_prompt(tokenizer, QUESTIONS[0])
    for what, needed in (
        (f"--tokens {options.tokens}", len(prompt) + options.tokens + 1),
        (f"--prefill {options.prefill}", options.prefill + 1),
    ):
        if needed > context:
            raise UnusableSetting(
                f"{what} needs {needed} positions, the model's context is {context}"
            )
    text = tokenizer.encode(" ".join(QUESTIONS))
    repeated = text * -(-options.prefill // len(text))
    return Work(prompt=prompt, tokens=options.tokens, long_prompt=repeated[: options.prefill])


def _servers(gguf: Path, options: EngineOptions, work: Work, stack: ExitStack) -> list[LlamaCpp]:
    """One server per configuration, each with room for all that it will be asked."""
    needed = max(2048, len(work.prompt) + options.tokens + 2, options.prefill + 2)
    servers = []
    for config in CONFIGS:
        servers.append(LlamaCpp(gguf, config, threads=options.threads, context=needed))
        stack.callback(servers[-1].close)
    return servers


def _rounds(contestants: Sequence[Contestant], rounds: int, progress: Progress) -> list[Result]:
    samples: list[list[Sample]] = [[] for _ in contestants]
    total, done = (rounds + 1) * len(contestants), 0
    for number in range(-1, rounds):  # round -1 warms everybody up and is thrown away
        for i in rotated(range(len(contestants)), number):
            sample = contestants[i].measure()
            if number >= 0:
                samples[i].append(sample)
            done += 1
            progress(f"{contestants[i].task} {contestants[i].name}", done, total)
    return [Result.of(c.name, c.task, s) for c, s in zip(contestants, samples, strict=True)]


def _agreement(
    gguf: Path,
    tokenizer: Tokenizer,
    stages: Stages,
    server: LlamaCpp,
    options: EngineOptions,
    progress: Progress,
) -> dict[str, Share]:
    progress("fp32 model writes the text", 0, 1)
    reference = Reference(gguf)
    answers = write_answers(
        reference, tokenizer, options.agreement_tokens, stages.whole.architecture.context_length
    )
    contestants: dict[str, ArgmaxesOf] = {
        EXACT: exact_argmaxes(stages.whole),
        FAST: stepwise_argmaxes(stages.whole, None),
        LLAMA: llama_argmaxes(server),
    }
    if stages.standalone is not None:
        contestants[stages.standalone_name] = stepwise_argmaxes(stages.standalone, stages.cut)
    total = len(answers) * len(contestants)
    steps = iter(range(1, total + 1))
    return measure_agreement(
        reference, answers, contestants, lambda: progress("agreement", next(steps), total)
    )
