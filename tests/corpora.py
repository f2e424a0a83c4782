"""Small corpora of random tokens, for tests that train or measure exits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tests.support import token_ids

from collm.model.artifact import Artifact
from collm.tune.corpus import Example, example_line, header_line


def random_corpus(path: Path, artifact: Artifact, count: int = 48) -> Path:
    """`count` examples of 20 to 39 tokens for `artifact`; every sixth is held out."""
    arch = artifact.architecture
    lines = [
        header_line(
            tokenizer=artifact.manifest.files["tokenizer.json"].sha256,
            vocabulary=arch.vocab_size,
            context=arch.context_length,
            settings={},
        )
    ]
    for seed in range(count):
        ids = np.array(token_ids(seed, 20 + seed % 20), np.int32)
        example = Example(
            ids=ids, domain="chat", greedy=None, user=1, first=6, held_out=seed % 6 == 0
        )
        lines.append(example_line(example, ""))
    path.write_text("".join(lines), encoding="utf-8")
    return path
