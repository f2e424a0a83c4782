"""What a cloud's answers have to be to be believed: about what was asked, and possible at all."""

from __future__ import annotations

from collections.abc import Sequence

from collm.config import Sampling
from collm.errors import ProtocolError
from collm.session.standing import Question
from collm.wire.messages import Alternatives, Scored, Verdict


def check_token(token_id: int, vocabulary: int) -> None:
    """Raises ProtocolError for a token that the model does not have."""
    if token_id >= vocabulary:
        raise ProtocolError(
            f"the cloud's token {token_id} is beyond the vocabulary of {vocabulary}"
        )


def check_verdict(verdict: Verdict, question: Question, vocabulary: int) -> None:
    """Raises ProtocolError for what is no answer to the question."""
    current = (verdict.epoch, verdict.base) == (question.epoch, question.base)
    if not current or verdict.accepted > question.drafted:
        raise ProtocolError("the cloud's verdict is not about this draft")
    if verdict.exit_cut and not question.may_exit:
        raise ProtocolError(
            f"exit {verdict.exit_cut} answers a question that only the full model may answer"
        )
    check_token(verdict.next_token, vocabulary)
    check_alternatives(verdict.alternatives, question.sampling, vocabulary)
    if question.void and verdict.accepted:
        raise ProtocolError("the cloud accepts a token that it had refused")


def check_alternatives(
    places: Sequence[Alternatives], sampling: Sampling | None, vocabulary: int
) -> None:
    """Raises ProtocolError for tokens beside the chosen ones that were not asked for."""
    wanted = sampling.top_logprobs if sampling is not None else 0
    for place in places:
        if len(place) > wanted:
            raise ProtocolError(f"the cloud tells {len(place)} alternatives, {wanted} were wanted")
        for token_id, _ in place:
            check_token(token_id, vocabulary)


def check_scored(
    scored: Scored,
    asked: tuple[int, int],
    drafted: int,
    sampling: Sampling | None,
    vocabulary: int,
) -> None:
    """asked: epoch and base of the Score, which had `drafted` tokens. Raises ProtocolError."""
    if (scored.epoch, scored.base) != asked or len(scored.ranks) != drafted:
        raise ProtocolError("the cloud's scores are not about this draft")
    check_token(max((*scored.best_ids, scored.next_token)), vocabulary)
    check_alternatives(scored.alternatives, sampling, vocabulary)
    if max(scored.ranks, default=1) > vocabulary:
        raise ProtocolError(f"a rank of {max(scored.ranks)} among {vocabulary} tokens")
