"""Does each contestant choose the token that the dequantised fp32 model would choose?

Teacher-forced: all are given the same text, answers that the fp32 model itself wrote greedily
to a dozen questions, and are asked for the likeliest token at every position of every answer.
The text does not depend on the artifact, so figures of several artifacts can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from collm.bench.contestants import next_token
from collm.bench.failures import UnusableSetting
from collm.bench.llama_cpp import LlamaCpp
from collm.bench.reference import Reference
from collm.bench.stats import Share, agreement
from collm.model.tokenizer import Tokenizer
from collm.runtime.stage import Stage

QUESTIONS = (
    "Explain how a bicycle stays upright while it is moving.",
    "What should I pack for a week of hiking in the mountains in autumn?",
    "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
    "What are the main causes of the First World War? Give some detail on each.",
    "Describe step by step how to bake a simple loaf of bread at home.",
    "Write a Python function that checks whether a word is a palindrome, and explain it.",
    "How does a vaccine protect the body against a disease?",
    "Give me advice on how to prepare for a job interview at a software company.",
    "Compare living in a big city with living in a small village.",
    "What is the difference between weather and climate? Explain it to a ten-year-old.",
    "Suggest a plan for learning to play the guitar in three months.",
    "Why do leaves change their colour in autumn, and what happens in the tree?",
)

_SLACK = 1.5
"""Answers are asked to be this much longer than needed, for some end early."""

ArgmaxesOf = Callable[[Sequence[int], Sequence[int]], list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A prompt and the answer that everybody is forced along."""

    prompt: Sequence[int]
    answer: Sequence[int]


def chat_prompt(tokenizer: Tokenizer, question: str) -> list[int]:
    """The question in the model's chat template, or plain where it has none."""
    if tokenizer.has_chat_template:
        return tokenizer.encode_chat([{"role": "user", "content": question}])
    return tokenizer.encode(question)


def write_answers(
    reference: Reference, tokenizer: Tokenizer, tokens: int, context: int
) -> list[Answer]:
    """About `tokens` tokens of greedy answers; fewer where the answers end before."""
    prompts = [chat_prompt(tokenizer, question) for question in QUESTIONS]
    room = context - max(map(len, prompts))
    length = min(room, round(_SLACK * tokens / len(prompts)) + 1)
    if length < 1:
        raise UnusableSetting(f"a context of {context} tokens has no room for an answer")
    written = reference.answers(prompts, length, sorted(tokenizer.eos_ids))
    made = [Answer(prompt=p, answer=a) for p, a in zip(prompts, written, strict=True)]
    return cut_to(made, tokens)


def cut_to(answers: Sequence[Answer], tokens: int) -> list[Answer]:
    """The same answers with their ends cut so that together they have `tokens`, if they can."""
    longest = max((len(a.answer) for a in answers), default=0)
    while longest and sum(min(longest, len(a.answer)) for a in answers) > tokens:
        longest -= 1
    # What a whole token off every answer took too much, the first answers give back.
    spare = tokens - sum(min(longest, len(a.answer)) for a in answers)
    made = []
    for a in answers:
        extra = 1 if spare > 0 and len(a.answer) > longest else 0
        spare -= extra
        made.append(Answer(prompt=a.prompt, answer=a.answer[: longest + extra]))
    return [a for a in made if a.answer]


def exact_argmaxes(stage: Stage) -> ArgmaxesOf:
    """Of our whole stage, in one call: the two-row rule makes that what decoding would give."""

    def argmaxes(prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
        session = stage.open(exact=True)
        session.append_ids([*prompt, *answer[:-1]])
        made: list[int] = session.logits(len(prompt) - 1).argmax(-1).tolist()
        session.close()
        return made

    return argmaxes


def stepwise_argmaxes(stage: Stage, cut: int | None) -> ArgmaxesOf:
    """Of our one-row kernels, token by token as they decode; from the exit at `cut`."""

    def argmaxes(prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
        session = stage.open(exact=False)
        session.append_ids(prompt)
        made = [next_token(session, cut)]
        for token in answer[:-1]:
            session.append_ids([token])
            made.append(next_token(session, cut))
        session.close()
        return made

    return argmaxes


def measure_agreement(
    reference: Reference,
    answers: Sequence[Answer],
    contestants: dict[str, ArgmaxesOf],
    step: Callable[[], None],
) -> dict[str, Share]:
    """Each contestant's share of positions where it has the reference's argmax.

    `step` is called after each contestant's answer.
    """
    truth: list[int] = []
    guesses: dict[str, list[int]] = {name: [] for name in contestants}
    for a in answers:
        truth += reference.argmaxes(a.prompt, a.answer)
        for name, argmaxes in contestants.items():
            guesses[name] += argmaxes(a.prompt, a.answer)
            step()
    return {name: agreement(made, truth) for name, made in guesses.items()}


def llama_argmaxes(server: LlamaCpp) -> ArgmaxesOf:
    """Of llama.cpp, token by token as it decodes."""
    return server.argmaxes
