"""Text for measuring that needs nothing: the model's own greedy answers to a few questions.

ONNX Runtime, no PyTorch. Not covered: text to train on (`collm synthesize`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from collm.errors import UsageError
from collm.model.artifact import Artifact
from collm.runtime.stage import Stage
from collm.tune.corpus import Example

QUESTIONS = (
    "Why is the sky blue? Answer in two sentences.",
    "List five things to pack for a day at the beach.",
    "Write a short Python function that returns the factorial of n.",
    "Explain to a child how a rainbow comes about.",
    "What should somebody know who wants to keep a dog?",
    "Write the first paragraph of a story about a lighthouse.",
    "How is bread made? Describe it step by step.",
    "Give three reasons to learn a second language.",
    "What is the difference between a virus and a bacterium?",
    "Write an email that asks a colleague to move a meeting to Thursday.",
    "Name the planets of the solar system and say a sentence about each.",
    "How can a small town get more people to cycle to work?",
)
_LONGEST = 256


def own_text(
    artifact: Artifact,
    tokens: int,
    *,
    threads: int = 1,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Example]:
    """About `tokens` tokens of answers, fewer where they end before; all count as held out.

    Raises UsageError where the model's context has no room for an answer.
    """
    tokenizer, arch = artifact.tokenizer(), artifact.architecture
    stage = Stage(artifact, range(arch.layers), threads=threads)
    made: list[Example] = []
    done = 0
    for number, question in enumerate(QUESTIONS):
        if done >= tokens:
            break
        ids = (
            tokenizer.encode_chat([{"role": "user", "content": question}])
            if tokenizer.has_chat_template
            else tokenizer.encode(question)
        )
        first = len(ids)
        share = -(-(tokens - done) // (len(QUESTIONS) - number))
        most = min(share, _LONGEST, arch.context_length - first)
        session = stage.open()
        session.append_ids(ids)
        while len(ids) - first < most:
            progress("writing text", done + len(ids) - first, tokens)
            token = int(session.logits(session.position - 1)[-1].argmax())
            if token in tokenizer.eos_ids:
                break
            ids.append(token)
            if len(ids) < arch.context_length:
                session.append_ids([token])
        session.close()
        if len(ids) > first:
            done += len(ids) - first
            made.append(
                Example(
                    ids=np.array(ids, np.int32),
                    domain="chat",
                    greedy=True,
                    user=1,
                    first=first,
                    held_out=True,
                )
            )
    if not made:
        raise UsageError(
            f"{artifact.folder}: this model answers nothing to our questions; give text with --data"
        )
    return made
