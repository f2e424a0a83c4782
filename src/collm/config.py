"""Settings of one generation, checked when made."""

from __future__ import annotations

from dataclasses import dataclass, field

from collm.errors import PromptError

MODES = ("auto", "verified", "threshold", "refine", "standalone", "cloud")
CONSTRAINTS = ("json_schema", "json_object", "regex", "lark")
MOST_ALTERNATIVES = 20


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """What an answer has to look like. `runtime.constraints` says which tokens that allows.

    Raises PromptError for a kind that is unknown, and for text that no grammar can be.
    """

    kind: str
    """`json_schema`, `json_object` (any object, no text), `regex` or `lark` (a grammar)."""
    text: str = ""
    """The schema, expression or grammar."""
    start: int = 0
    """The position at which the answer begins. Filled in when it does."""

    def __post_init__(self) -> None:
        if self.kind not in CONSTRAINTS:
            raise PromptError(
                f"constraint {self.kind[:40]!r}: expected one of {', '.join(CONSTRAINTS)}"
            )
        if bool(self.text) == (self.kind == "json_object"):
            wanted = "no text" if self.text else "text"
            raise PromptError(f"a constraint of kind {self.kind}: expected {wanted}")
        if not self.text.isascii():
            try:
                self.text.encode()
            except UnicodeEncodeError:
                raise PromptError("the constraint is not valid Unicode text") from None
        _require("constraint start", self.start, 0, 2**31)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is chosen from logits. The defaults are greedy.

    A sampled token is a function of (logits, seed, position) and, with a constraint, of the text
    before it, so that edge and cloud choose alike. Raises PromptError for values out of range.
    """

    temperature: float = 0.0
    """0 takes the likeliest token; otherwise at least 0.001."""
    top_k: int = 0
    """Keep only the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens whose probabilities just reach this sum."""
    seed: int = 0
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens seen before (CTRL, 2019)."""
    constraint: Constraint | None = None
    """Tokens that it does not allow are as if the model had none of them."""
    top_logprobs: int = 0
    """Tell so many of the likeliest tokens beside each; changes nothing about which is chosen."""

    def __post_init__(self) -> None:
        if self.temperature != 0.0:
            _require("temperature", self.temperature, 0.001, 100.0)
        _require("top-k", self.top_k, 0, 2**24)
        _require("top-p", self.top_p, 1e-6, 1.0)
        _require("seed", self.seed, 0, 2**64 - 1)
        _require("repetition penalty", self.repetition_penalty, 0.01, 100.0)
        _require("top logprobs", self.top_logprobs, 0, MOST_ALTERNATIVES)


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """What `refine` mode lets stand. Raises PromptError for values out of range."""

    segment: int = 6
    """Tokens that the edge writes before the full model scores them."""
    passes: int = 6
    """Most corrections of one segment."""
    rank: int = 3
    """A token stands only if it is among the full model's so many likeliest."""
    gap: float = 1.5
    """… and its log-probability is at most so many nats below the likeliest token's."""
    repetition: float = 0.5
    """… and at most this share of the last tokens goes on with n-grams that were there before."""

    def __post_init__(self) -> None:
        _require("refine segment", self.segment, 1, 255)
        _require("refine passes", self.passes, 0, 1000)
        _require("refine rank", self.rank, 1, 2**24)
        _require("refine gap", self.gap, 0.0, 100.0)
        _require("refine repetition", self.repetition, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of making the full model's tokens: who does what, and what travels."""

    mode: str = "verified"
    """`verified`, or `cloud`: the cloud goes on alone."""
    placement: int = 0
    """Layers on the edge."""
    exits: tuple[int, ...] | None = None
    """Exits in use; None: all at or below the placement."""
    wire: str = "f32"
    """How positions travel; `ids`: the cloud runs the edge's layers itself."""
    threshold: float = 0.6
    draft: int = 8
    ahead: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("verified", "cloud"):
            raise PromptError(f"a way of mode {self.mode!r}: expected verified or cloud")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One answer: which mode, how long, how bold the drafts."""

    mode: str = "verified"
    max_tokens: int = 128
    threshold: float = 0.6
    """An exit's guess is taken while its calibrated confidence is at least this."""
    criterion: str = ""
    """An exit criterion, such as `margin:0.5 & coherence`; empty: confidence and `threshold`."""
    lookup: bool = False
    """Also draft what followed the last tokens earlier in the text (`verified` mode)."""
    deadline_seconds: float = 0.0
    """Longest time from one token to the next in `threshold` mode; 0: none."""
    refinement: Refinement = field(default_factory=Refinement)
    draft: int = 8
    """Most tokens drafted before the cloud is asked."""
    batch: int = 1
    """Hidden states that go up in one message, in `verified` mode; questions do not wait."""
    ahead: float | None = None
    """While a verdict is awaited in `verified` mode, draft on from guesses of at least this
    confidence; None: wait."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these strings."""
    ignore_eos: bool = False
    """Go on after the end-of-text token (for measurements of fixed length)."""
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise PromptError(f"mode {self.mode!r}: expected one of {', '.join(MODES)}")
        _require("max tokens", self.max_tokens, 1, 1_000_000)
        _require("threshold", self.threshold, 0.0, 1.0)
        _require("draft length", self.draft, 1, 128)
        _require("batch", self.batch, 1, 128)
        _require("deadline", self.deadline_seconds, 0.0, 3600.0)
        if self.deadline_seconds and self.mode != "threshold":
            raise PromptError(f"a deadline goes with mode threshold, not {self.mode}")
        if self.ahead is not None:
            _require("ahead", self.ahead, 0.0, 1.0)
            if self.mode not in ("verified", "auto"):
                raise PromptError(f"drafting ahead goes with mode verified, not {self.mode}")
        if self.lookup and self.mode not in ("verified", "auto"):
            raise PromptError(
                f"lookup drafts need a cloud that verifies: mode verified, not {self.mode}"
            )
        if any(not text for text in self.stop):
            raise PromptError("a stop string is empty; expected at least one character")


def _require(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # false for NaN too
        raise PromptError(f"{name} {value}: expected {low:g} to {high:g}")
