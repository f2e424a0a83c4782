"""From an artifact to exits that are worth taking, in one call: text, states, training, files.

Everything is kept in a work folder and used again, so that an interrupted run goes on where it
stood: `corpus.jsonl` (where no data is given the model writes it), `states/`, `checkpoint`,
`exits/`. The artifact is written last, exit by exit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from collm.errors import PlacementError, UsageError
from collm.model.artifact import Artifact
from collm.model.delta import adaptation_of
from collm.model.exits import add_exit
from collm.model.files import sha256_of
from collm.tune.backbone import Backbone, load_backbone
from collm.tune.corpus import Corpus, Example, check_tokenizer, read_corpus
from collm.tune.distill import DistillConfig, Trained, distill
from collm.tune.export import ExportedExit, export, load_exits
from collm.tune.heads import ExitSpec, needed_cuts
from collm.tune.progress import progress_bar
from collm.tune.synthesize import SynthesisConfig, Synthesizer
from collm.tune.teacher import Lesson, Teacher, cached_lessons

REPEATS = 3
"""Text that the model writes for itself is seen so many times."""
HELD_OUT_TOKENS = 24_000
"""At most this much held-out text is measured on during training."""
_SHORTEST_CORPUS = 4_000


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """What to train, on what, and where to keep it."""

    work: Path
    cuts: tuple[int, ...] | None = None
    """None: every cut of the artifact."""
    kind: str = "layer"
    layers: int = 1
    window: int = 0
    feed: bool = True
    """Exits also read the states at earlier cuts and the embedding."""
    data: Path | None = None
    """A corpus of `collm synthesize`; None: the model writes one."""
    start: Path | None = None
    """A folder with exit files of the same make to start from."""
    device: str = "cpu"
    training: DistillConfig


def exit_specs(artifact: Artifact, config: TuneConfig) -> list[ExitSpec]:
    """One spec an exit. Raises PlacementError or UsageError for what cannot be made."""
    offered = artifact.manifest.cuts
    cuts = offered if config.cuts is None else tuple(sorted(set(config.cuts)))
    for cut in cuts:
        if cut not in offered:
            raise PlacementError(
                f"exit {cut}: {artifact.folder} has cuts at {', '.join(map(str, offered))}"
            )
    specs = [
        ExitSpec(
            cut=cut,
            kind=config.kind,
            layers=config.layers,
            window=config.window,
            feed=(0, *(c for c in offered if c < cut)) if config.feed else (),
        )
        for cut in cuts
    ]
    for spec in specs:
        spec.check()
    config.training.check()
    return specs


def corpus_for(artifact: Artifact, config: TuneConfig, said: Callable[[str], None]) -> Corpus:
    """The corpus given, or one that the model writes: a part of the budget, seen repeatedly."""
    if config.data is not None:
        corpus = read_corpus(config.data)
    else:
        path = config.work / "corpus.jsonl"
        tokens = max(_SHORTEST_CORPUS, config.training.tokens // REPEATS)
        config.work.mkdir(parents=True, exist_ok=True)
        wanted = SynthesisConfig(out=path, tokens=tokens, seed=config.training.seed)
        with progress_bar() as bar:
            task = bar.add_task("the model writes text", total=tokens)
            writer = Synthesizer(artifact, wanted, device=config.device)
            writer.run(lambda done: bar.update(task, completed=min(done, tokens)))
        corpus = read_corpus(path)
    check_tokenizer(corpus, artifact)
    said(
        f"{corpus.path}: {sum(len(e.ids) for e in corpus.examples):,} tokens in "
        f"{len(corpus.examples):,} examples ({', '.join(corpus.domains)})"
    )
    return corpus


def chosen_examples(
    corpus: Corpus, tokens: int, seed: int, held_out: int = HELD_OUT_TOKENS
) -> list[Example]:
    """As much of the corpus as a run of so many tokens sees, in the corpus's order.

    Random examples where that is not all of them; of the held-out ones, `held_out` tokens.
    """

    def part(examples: list[Example], most: int) -> list[Example]:
        order = np.random.default_rng((seed, len(examples))).permutation(len(examples))
        total = np.cumsum([len(examples[i].ids) for i in order])
        count = int(np.searchsorted(total, most)) + 1
        return [examples[i] for i in sorted(order[:count].tolist())]

    return part(corpus.training, tokens) + part(corpus.held_out, held_out)


def tune(
    artifact: Artifact,
    config: TuneConfig,
    *,
    install: bool = True,
    said: Callable[[str], None] = lambda line: None,
) -> list[ExportedExit]:
    """Train exits and write them to `work/exits`; install: add them to the artifact, too.

    Raises UsageError and its kin; the artifact is then as it was.
    """
    specs = exit_specs(artifact, config)
    corpus = corpus_for(artifact, config, said)
    backbone = load_backbone(artifact, device=config.device)
    begin = exits_to_start_from(backbone, specs, config)
    lessons, cuts = lessons_for(backbone, corpus, specs, config)
    trained = distill(
        backbone,
        specs,
        lessons,
        cuts,
        config.work / "checkpoint",
        config.training,
        begin=begin,
        said=said,
    )
    exported = export(
        backbone,
        trained,
        [lesson for lesson in lessons if lesson.example.held_out],
        cuts,
        config.work / "exits",
        base=artifact.manifest.name,
        about=about_training(corpus, lessons),
        adaptation=adaptation_of(artifact.manifest),
    )
    if install:
        for made in exported:
            add_exit(artifact.folder, made.path)
    return exported


def exits_to_start_from(
    backbone: Backbone, specs: list[ExitSpec], config: TuneConfig
) -> Trained | None:
    """Those of `config.start`. Raises UsageError where they do not fit."""
    if config.start is None:
        return None
    paths = sorted(config.start.glob("exit-*.safetensors"))
    if not paths:
        raise UsageError(f"{config.start}: no exit-*.safetensors there to start from")
    return load_exits(backbone, paths, specs)


def about_training(corpus: Corpus, lessons: list[Lesson]) -> dict[str, object]:
    """What an exit file says of the text it was trained on."""
    return {
        "corpus_sha256": sha256_of(corpus.path),
        "corpus_tokens": sum(len(lesson.example.ids) for lesson in lessons),
        "domains": list(corpus.domains),
    }


def lessons_for(
    backbone: Backbone, corpus: Corpus, specs: list[ExitSpec], config: TuneConfig
) -> tuple[list[Lesson], tuple[int, ...]]:
    """The full model's part in the corpus, and the cuts that its states are of."""
    cuts = tuple(cut for cut in needed_cuts(specs) if cut)
    examples = chosen_examples(corpus, config.training.tokens, config.training.seed)
    teacher = Teacher(backbone=backbone, cuts=cuts)
    return cached_lessons(teacher, examples, config.work / "states"), cuts
