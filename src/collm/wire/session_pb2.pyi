# ruff: noqa
# fmt: off
# mypy: ignore-errors
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Envelope(_message.Message):
    __slots__ = ("hello", "append", "verify", "generate", "crop", "heartbeat", "bye", "score", "attach", "recut", "ask", "welcome", "verdict", "token", "finished", "pong", "refusal", "scored", "attached", "evicted", "checksum")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    APPEND_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    CROP_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    BYE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    RECUT_FIELD_NUMBER: _ClassVar[int]
    ASK_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    SCORED_FIELD_NUMBER: _ClassVar[int]
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    EVICTED_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    append: Append
    verify: Verify
    generate: Generate
    crop: Crop
    heartbeat: Heartbeat
    bye: Bye
    score: Score
    attach: Attach
    recut: Recut
    ask: Ask
    welcome: Welcome
    verdict: Verdict
    token: Token
    finished: Finished
    pong: Pong
    refusal: Refusal
    scored: Scored
    attached: Attached
    evicted: Evicted
    checksum: int
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., append: _Optional[_Union[Append, _Mapping]] = ..., verify: _Optional[_Union[Verify, _Mapping]] = ..., generate: _Optional[_Union[Generate, _Mapping]] = ..., crop: _Optional[_Union[Crop, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., bye: _Optional[_Union[Bye, _Mapping]] = ..., score: _Optional[_Union[Score, _Mapping]] = ..., attach: _Optional[_Union[Attach, _Mapping]] = ..., recut: _Optional[_Union[Recut, _Mapping]] = ..., ask: _Optional[_Union[Ask, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ..., token: _Optional[_Union[Token, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., scored: _Optional[_Union[Scored, _Mapping]] = ..., attached: _Optional[_Union[Attached, _Mapping]] = ..., evicted: _Optional[_Union[Evicted, _Mapping]] = ..., checksum: _Optional[int] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "seed", "repetition_penalty", "constraint", "top_logprobs")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    repetition_penalty: float
    constraint: Constraint
    top_logprobs: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., repetition_penalty: _Optional[float] = ..., constraint: _Optional[_Union[Constraint, _Mapping]] = ..., top_logprobs: _Optional[int] = ...) -> None: ...

class Constraint(_message.Message):
    __slots__ = ("kind", "text", "start")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    kind: str
    text: str
    start: int
    def __init__(self, kind: _Optional[str] = ..., text: _Optional[str] = ..., start: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_major", "protocol_minor", "fingerprint", "cut", "wire_format", "software", "resumes")
    PROTOCOL_MAJOR_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MINOR_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    WIRE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    RESUMES_FIELD_NUMBER: _ClassVar[int]
    protocol_major: int
    protocol_minor: int
    fingerprint: str
    cut: int
    wire_format: str
    software: str
    resumes: str
    def __init__(self, protocol_major: _Optional[int] = ..., protocol_minor: _Optional[int] = ..., fingerprint: _Optional[str] = ..., cut: _Optional[int] = ..., wire_format: _Optional[str] = ..., software: _Optional[str] = ..., resumes: _Optional[str] = ...) -> None: ...

class Append(_message.Message):
    __slots__ = ("epoch", "base", "token_ids", "wire_format", "rows", "settled", "compressed")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    WIRE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    COMPRESSED_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    base: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    wire_format: str
    rows: bytes
    settled: bool
    compressed: bool
    def __init__(self, epoch: _Optional[int] = ..., base: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., wire_format: _Optional[str] = ..., rows: _Optional[bytes] = ..., settled: _Optional[bool] = ..., compressed: _Optional[bool] = ...) -> None: ...

class Verify(_message.Message):
    __slots__ = ("epoch", "base", "draft", "sampling", "may_exit")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAY_EXIT_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    base: int
    draft: _containers.RepeatedScalarFieldContainer[int]
    sampling: Sampling
    may_exit: bool
    def __init__(self, epoch: _Optional[int] = ..., base: _Optional[int] = ..., draft: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., may_exit: _Optional[bool] = ...) -> None: ...

class Ask(_message.Message):
    __slots__ = ("epoch", "drafted", "token_ids", "sampling", "may_exit")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAY_EXIT_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    drafted: int
    token_ids: bytes
    sampling: Sampling
    may_exit: bool
    def __init__(self, epoch: _Optional[int] = ..., drafted: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., may_exit: _Optional[bool] = ...) -> None: ...

class Generate(_message.Message):
    __slots__ = ("epoch", "base", "max_tokens", "stop_ids", "sampling")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    base: int
    max_tokens: int
    stop_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: Sampling
    def __init__(self, epoch: _Optional[int] = ..., base: _Optional[int] = ..., max_tokens: _Optional[int] = ..., stop_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("epoch", "base", "draft", "sampling")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    base: int
    draft: _containers.RepeatedScalarFieldContainer[int]
    sampling: Sampling
    def __init__(self, epoch: _Optional[int] = ..., base: _Optional[int] = ..., draft: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ...) -> None: ...

class Crop(_message.Message):
    __slots__ = ("epoch", "position")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    position: int
    def __init__(self, epoch: _Optional[int] = ..., position: _Optional[int] = ...) -> None: ...

class Attach(_message.Message):
    __slots__ = ("session_id", "epoch", "position")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    epoch: int
    position: int
    def __init__(self, session_id: _Optional[str] = ..., epoch: _Optional[int] = ..., position: _Optional[int] = ...) -> None: ...

class Recut(_message.Message):
    __slots__ = ("epoch", "position", "cut", "wire_format")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    WIRE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    position: int
    cut: int
    wire_format: str
    def __init__(self, epoch: _Optional[int] = ..., position: _Optional[int] = ..., cut: _Optional[int] = ..., wire_format: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("nonce", "padding", "reply_bytes", "wants_figures", "wants_tiers")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    REPLY_BYTES_FIELD_NUMBER: _ClassVar[int]
    WANTS_FIGURES_FIELD_NUMBER: _ClassVar[int]
    WANTS_TIERS_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    padding: bytes
    reply_bytes: int
    wants_figures: bool
    wants_tiers: bool
    def __init__(self, nonce: _Optional[int] = ..., padding: _Optional[bytes] = ..., reply_bytes: _Optional[int] = ..., wants_figures: _Optional[bool] = ..., wants_tiers: _Optional[bool] = ...) -> None: ...

class Bye(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol_minor", "position", "software", "session_id", "max_positions", "model_layers", "cuts")
    PROTOCOL_MINOR_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    MODEL_LAYERS_FIELD_NUMBER: _ClassVar[int]
    CUTS_FIELD_NUMBER: _ClassVar[int]
    protocol_minor: int
    position: int
    software: str
    session_id: str
    max_positions: int
    model_layers: int
    cuts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, protocol_minor: _Optional[int] = ..., position: _Optional[int] = ..., software: _Optional[str] = ..., session_id: _Optional[str] = ..., max_positions: _Optional[int] = ..., model_layers: _Optional[int] = ..., cuts: _Optional[_Iterable[int]] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("epoch", "base", "accepted", "next_token", "logprob", "cloud_seconds", "logprobs_accepted", "exit_cut", "alternative_ids", "alternative_logprobs")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    NEXT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    CLOUD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    EXIT_CUT_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_IDS_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    base: int
    accepted: int
    next_token: int
    logprob: float
    cloud_seconds: float
    logprobs_accepted: _containers.RepeatedScalarFieldContainer[float]
    exit_cut: int
    alternative_ids: _containers.RepeatedScalarFieldContainer[int]
    alternative_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, epoch: _Optional[int] = ..., base: _Optional[int] = ..., accepted: _Optional[int] = ..., next_token: _Optional[int] = ..., logprob: _Optional[float] = ..., cloud_seconds: _Optional[float] = ..., logprobs_accepted: _Optional[_Iterable[float]] = ..., exit_cut: _Optional[int] = ..., alternative_ids: _Optional[_Iterable[int]] = ..., alternative_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class Scored(_message.Message):
    __slots__ = ("epoch", "base", "logprobs", "ranks", "best_ids", "best_logprobs", "next_token", "next_logprob", "cloud_seconds", "alternative_ids", "alternative_logprobs")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    BEST_IDS_FIELD_NUMBER: _ClassVar[int]
    BEST_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NEXT_LOGPROB_FIELD_NUMBER: _ClassVar[int]
    CLOUD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_IDS_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    base: int
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    ranks: _containers.RepeatedScalarFieldContainer[int]
    best_ids: _containers.RepeatedScalarFieldContainer[int]
    best_logprobs: _containers.RepeatedScalarFieldContainer[float]
    next_token: int
    next_logprob: float
    cloud_seconds: float
    alternative_ids: _containers.RepeatedScalarFieldContainer[int]
    alternative_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, epoch: _Optional[int] = ..., base: _Optional[int] = ..., logprobs: _Optional[_Iterable[float]] = ..., ranks: _Optional[_Iterable[int]] = ..., best_ids: _Optional[_Iterable[int]] = ..., best_logprobs: _Optional[_Iterable[float]] = ..., next_token: _Optional[int] = ..., next_logprob: _Optional[float] = ..., cloud_seconds: _Optional[float] = ..., alternative_ids: _Optional[_Iterable[int]] = ..., alternative_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("epoch", "position", "token_id", "logprob", "cloud_seconds", "rejected", "alternative_ids", "alternative_logprobs")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    CLOUD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_IDS_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    position: int
    token_id: int
    logprob: float
    cloud_seconds: float
    rejected: int
    alternative_ids: _containers.RepeatedScalarFieldContainer[int]
    alternative_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, epoch: _Optional[int] = ..., position: _Optional[int] = ..., token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., cloud_seconds: _Optional[float] = ..., rejected: _Optional[int] = ..., alternative_ids: _Optional[_Iterable[int]] = ..., alternative_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("epoch", "reason")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    reason: str
    def __init__(self, epoch: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("nonce", "padding", "figures", "tiers")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    padding: bytes
    figures: Figures
    tiers: _containers.RepeatedCompositeFieldContainer[Tier]
    def __init__(self, nonce: _Optional[int] = ..., padding: _Optional[bytes] = ..., figures: _Optional[_Union[Figures, _Mapping]] = ..., tiers: _Optional[_Iterable[_Union[Tier, _Mapping]]] = ...) -> None: ...

class Tier(_message.Message):
    __slots__ = ("role", "address", "first", "last", "ok", "round_trip", "sessions", "error")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    OK_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    role: str
    address: str
    first: int
    last: int
    ok: bool
    round_trip: float
    sessions: int
    error: str
    def __init__(self, role: _Optional[str] = ..., address: _Optional[str] = ..., first: _Optional[int] = ..., last: _Optional[int] = ..., ok: _Optional[bool] = ..., round_trip: _Optional[float] = ..., sessions: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class Figures(_message.Message):
    __slots__ = ("fingerprint", "model_layers", "sessions", "at_work", "costs")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MODEL_LAYERS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    AT_WORK_FIELD_NUMBER: _ClassVar[int]
    COSTS_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    model_layers: int
    sessions: int
    at_work: int
    costs: _containers.RepeatedCompositeFieldContainer[RowSeconds]
    def __init__(self, fingerprint: _Optional[str] = ..., model_layers: _Optional[int] = ..., sessions: _Optional[int] = ..., at_work: _Optional[int] = ..., costs: _Optional[_Iterable[_Union[RowSeconds, _Mapping]]] = ...) -> None: ...

class RowSeconds(_message.Message):
    __slots__ = ("cut", "rows", "seconds")
    CUT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    cut: int
    rows: int
    seconds: float
    def __init__(self, cut: _Optional[int] = ..., rows: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "reason", "retry_seconds")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    code: str
    reason: str
    retry_seconds: float
    def __init__(self, code: _Optional[str] = ..., reason: _Optional[str] = ..., retry_seconds: _Optional[float] = ...) -> None: ...

class Attached(_message.Message):
    __slots__ = ("position",)
    POSITION_FIELD_NUMBER: _ClassVar[int]
    position: int
    def __init__(self, position: _Optional[int] = ...) -> None: ...

class Evicted(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
