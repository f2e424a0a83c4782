"""The messages of one session, as plain values.

Positions count from 0 and are absolute in the session's text. An `epoch` goes up by one with
every crop, so that answers to an abandoned draft can be told from current ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from collm.config import Sampling
from collm.wire.tiers import Tier

PROTOCOL_MAJOR = 1
"""Both sides must have the same."""
PROTOCOL_MINOR = 6
"""Goes up with additions that an older peer may not know; 1 brought `Score`, 3 `Attach`, 4 `Recut`
and exits on the way, 5 constraints and alternatives, 6 tiers."""
HELLO_MINOR = 5
"""What a client's Hello says: the newest that changed what is sent in a session. 6 brought nothing
there, and a cloud of 5 would refuse a newer client."""
ATTACH_MINOR = 3
"""From here on a session can be taken up again, and every frame ends with a checksum."""
RECUT_MINOR = 4
"""From here on a session's cut and wire format may change, and rows may be compressed."""
EXIT_MINOR = 4
"""From here on a client may let exits of servers answer; an older one has no such flag."""
CONSTRAINT_MINOR = 5
"""From here on an answer may be constrained, and the likeliest tokens are told beside each."""

REFUSAL_CODES = frozenset(
    {
        "version",
        "fingerprint",
        "placement",
        "wire_format",
        "protocol",
        "limits",
        "busy",
        "corrupt",
        "idle",
        "identity",
        "internal",
    }
)
FINISH_REASONS = frozenset({"stop", "length", "context"})

Alternatives: TypeAlias = tuple[tuple[int, float], ...]
"""Token ids and log-probabilities of one place, the likeliest first."""
Rows: TypeAlias = npt.NDArray[np.float32]
"""Hidden states at the cut, f32 [positions, hidden]."""


@dataclass(frozen=True, kw_only=True)
class Hello:
    """Client's first message: what it speaks and which model and cut it runs."""

    protocol_major: int
    protocol_minor: int
    fingerprint: str
    """Weight fingerprint of the artifact's manifest."""
    cut: int
    """First layer the cloud runs; 0 means that only token ids travel."""
    wire_format: str
    software: str
    resumes: str = ""
    """The session that will be attached: the cloud does not count it as another one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Append:
    """Positions `base` to `base + len(token_ids) - 1`; sent in the background, harmless twice."""

    epoch: int
    base: int
    token_ids: tuple[int, ...]
    rows: Rows | None
    """f32 [len(token_ids), hidden], or None with wire format `ids`. Read-only when decoded."""
    settled: bool = False
    """A hint: they stay, and more will follow before a question; a cloud may run them at once."""

    def __eq__(self, other: object) -> bool:
        """Equal when every field is, rows compared by value."""
        if not isinstance(other, Append):
            return NotImplemented
        mine = (self.epoch, self.base, self.token_ids, self.settled)
        if mine != (other.epoch, other.base, other.token_ids, other.settled):
            return False
        if self.rows is None or other.rows is None:
            return self.rows is other.rows
        return np.array_equal(self.rows, other.rows)


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Judge a draft. Row `base` predicts `draft[0]`; rows to `base + len(draft)` were appended.

    An empty draft asks for the one token that follows position `base`. One of an epoch gone by
    was sent before its client knew of a crop, and gets no answer.
    """

    epoch: int
    base: int
    draft: tuple[int, ...]
    sampling: Sampling
    may_exit: bool = False
    """Whether an exit of a server on the way may answer; with an empty draft only."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A `Verify` in few bytes: the last `drafted` positions are the draft.

    token_ids: those at the end that were not appended yet, in a session of wire format `ids`.
    sampling: None stands for that of the session's last question.
    """

    epoch: int
    drafted: int
    token_ids: tuple[int, ...] = ()
    sampling: Sampling | None = None
    may_exit: bool = False
    """As of `Verify`."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What the full model makes of a draft, whatever it thinks of it; positions as in `Verify`.

    Nothing is cropped: that is the client's to decide. Of `sampling` the constraint and the number
    of alternatives count; None: there are neither.
    """

    epoch: int
    base: int
    draft: tuple[int, ...]
    sampling: Sampling | None = None


@dataclass(frozen=True, kw_only=True)
class Generate:
    """The cloud goes on alone from the `base` positions it holds."""

    epoch: int
    base: int
    max_tokens: int
    stop_ids: tuple[int, ...]
    sampling: Sampling


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Forget every position from `position` on; `epoch` is the new one."""

    epoch: int
    position: int


@dataclass(frozen=True, kw_only=True)
class Recut:
    """From `position` on, which is all that is held, rows come from `cut` in `wire_format`.

    What the cloud holds stays: it makes up from the token ids what it lacks below the new cut.
    """

    epoch: int
    position: int
    cut: int
    wire_format: str


@dataclass(frozen=True, kw_only=True)
class Attach:
    """Go on with a session whose link broke, or whose memory the cloud took for another.

    The client's text is certain to be the cloud's for the first `position` positions; it crops to
    them, whatever it has run or cropped since. `epoch` is the one that counts from now on.
    """

    session_id: str
    """What `Welcome` called it."""
    epoch: int
    position: int


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """Are you there? Answered by a `Pong` with the same nonce (0 to 2**64 - 1).

    The rest measures the link and the cloud; an older cloud does not see it.
    """

    nonce: int
    padding: bytes = b""
    """Says nothing, and takes its time."""
    reply_bytes: int = 0
    """Padding that the answer shall have."""
    wants_figures: bool = False
    wants_tiers: bool = False
    """An edge server answers then also while its own cloud is gone, and says so."""


@dataclass(frozen=True, kw_only=True)
class Bye:
    """The client is done with this session."""


@dataclass(frozen=True, kw_only=True)
class Welcome:
    """The answer to an accepted `Hello`; `position` is how many positions the cloud holds."""

    protocol_minor: int
    position: int
    software: str
    session_id: str
    max_positions: int
    model_layers: int
    cuts: tuple[int, ...] = ()
    """Layers that the session's rows may come from, now or after a Recut; empty: not said."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer to the `Verify` of the same epoch and base.

    The first `accepted` tokens of the draft stand and `next_token` follows them.
    `logprobs_accepted` has one value for each accepted token, or none at all.
    """

    epoch: int
    base: int
    accepted: int
    next_token: int
    logprob: float
    cloud_seconds: float
    logprobs_accepted: tuple[float, ...]
    exit_cut: int = 0
    """The exit that chose `next_token`, with `logprob` its confidence's logarithm; 0: the full
    model. Only for a `Verify` that may exit."""
    alternatives: tuple[Alternatives, ...] = ()
    """Of the accepted tokens' places and the next one's, as many in each; empty: not wanted."""

    def logprob_at(self, index: int) -> float | None:
        """Of the accepted token of this index, or at `accepted` the next; None: not said."""
        if index == self.accepted:
            return self.logprob
        return self.logprobs_accepted[index] if self.logprobs_accepted else None

    def alternatives_at(self, index: int) -> Alternatives:
        """Of the same place."""
        return self.alternatives[index] if self.alternatives else ()


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The answer to the `Score` of the same epoch and base; each tuple has a value a draft token.

    Log-probabilities are those of temperature 1, in nats. What a constraint does not allow is
    neither the likeliest nor ranks before anything.
    """

    epoch: int
    base: int
    logprobs: tuple[float, ...]
    """Of the drafted tokens."""
    ranks: tuple[int, ...]
    """Of the drafted tokens, 1 the likeliest; equally likely ones rank by token id."""
    best_ids: tuple[int, ...]
    """The likeliest tokens in the drafted ones' places."""
    best_logprobs: tuple[float, ...]
    next_token: int
    """The likeliest token after the draft."""
    next_logprob: float
    cloud_seconds: float
    alternatives: tuple[Alternatives, ...] = ()
    """Of the drafted tokens' places and the one after them, as many in each."""


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token of a running `Generate`, at `position`.

    A cloud that drafts sends several in a row; the first of them tells the time of all.
    """

    epoch: int
    position: int
    token_id: int
    logprob: float
    cloud_seconds: float
    rejected: int = 0
    """Positions that the cloud ran for drafts of its own and took back, since the last token."""
    alternatives: Alternatives = ()


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A `Generate` is over; `reason` is one of `FINISH_REASONS`."""

    epoch: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Pong:
    """The answer to a `Heartbeat`."""

    nonce: int
    padding: bytes = b""
    figures: Figures | None = None
    """Where they were wanted, and the cloud is not too old."""
    tiers: tuple[Tier, ...] = ()
    """The same: who answers first, then those above it."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a cloud says of itself."""

    fingerprint: str
    model_layers: int
    sessions: int
    """That it holds."""
    at_work: int
    """Of them, those that spoke in the last seconds."""
    costs: tuple[RowSeconds, ...]
    """Empty: not measured yet."""


@dataclass(frozen=True, kw_only=True)
class RowSeconds:
    """What `rows` rows take in the cloud from layer `cut` through its last; at that, the head."""

    cut: int
    rows: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Attached:
    """The answer to an `Attach`: the cloud holds so many positions, 0 if it lost them."""

    position: int


@dataclass(frozen=True, kw_only=True)
class Evicted:
    """The cloud has taken this session's memory, and does nothing before its `Attach`."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """The cloud ends the session; `code` is one of `REFUSAL_CODES`, `reason` is one line."""

    code: str
    reason: str
    retry_seconds: float = 0.0
    """When to try again; 0: the cloud does not say."""


ClientMessage: TypeAlias = (
    Hello | Append | Verify | Ask | Score | Generate | Crop | Recut | Attach | Heartbeat | Bye
)
CloudMessage: TypeAlias = (
    Welcome | Verdict | Scored | Token | Finished | Attached | Evicted | Pong | Refusal
)
