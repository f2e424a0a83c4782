"""What a process counts, by the names under which Prometheus reads it.

Rooms add to these where things happen; `serve.metrics` publishes them. Nothing here has users'
words, and labels have few values.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY: Final = CollectorRegistry()

SESSIONS: Final = Gauge("collm_sessions", "Sessions held", registry=REGISTRY)
KV_BYTES: Final = Gauge(
    "collm_kv_bytes", "Memory granted to caches and pending states", registry=REGISTRY
)
KV_BUDGET: Final = Gauge("collm_kv_budget_bytes", "Most that may be granted", registry=REGISTRY)
QUEUE: Final = Gauge("collm_queue_depth", "Turns waiting for a compute thread", registry=REGISTRY)
VERDICTS: Final = Counter("collm_verdicts", "Drafts and questions judged", registry=REGISTRY)
ACCEPTED: Final = Histogram(
    "collm_accepted_tokens",
    "Tokens of a draft that stood",
    buckets=(0, 1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128),
    registry=REGISTRY,
)
TOKENS: Final = Counter("collm_tokens", "Tokens answered by the full model", registry=REGISTRY)
ANSWERED: Final = Counter(
    "collm_answered",
    "Tokens answered, by who chose them: exit@CUT of an edge server, the full model here or above",
    ["by"],
    registry=REGISTRY,
)
ABOVE: Final = Gauge(
    "collm_cloud_above_up", "Whether an edge server reaches the cloud above it", registry=REGISTRY
)
POSITIONS: Final = Counter(
    "collm_positions", "Positions received, by the cut they come from", ["cut"], registry=REGISTRY
)
BYTES_UP: Final = Counter(
    "collm_received_bytes", "Frame bytes received, by wire format", ["wire"], registry=REGISTRY
)
BYTES_DOWN: Final = Counter("collm_sent_bytes", "Frame bytes sent", registry=REGISTRY)
EVICTIONS: Final = Counter("collm_evictions", "Sessions that lost their memory", registry=REGISTRY)
ATTACHED: Final = Counter(
    "collm_attached",
    "Sessions taken up again, by whether they were still held",
    ["held"],
    registry=REGISTRY,
)
REFUSALS: Final = Counter("collm_refusals", "Refusals by reason", ["code"], registry=REGISTRY)
TURN_SECONDS: Final = Histogram(
    "collm_turn_seconds",
    "Computing one answer, by the message asked with",
    ["message"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
    registry=REGISTRY,
)
EXITS: Final = Counter(
    "collm_emitted", "Tokens emitted at an edge, by where they were made", ["source"],
    registry=REGISTRY,
)  # fmt: skip
WAYS: Final = Counter(
    "collm_ways", "Changes of how an edge's tokens are made, in mode auto", ["mode", "wire"],
    registry=REGISTRY,
)  # fmt: skip
RECONNECTS: Final = Counter(
    "collm_reconnects",
    "Links replaced, of an edge to its cloud or of an edge server to the one above",
    registry=REGISTRY,
)
REPLAYED: Final = Counter("collm_replayed_bytes", "Bytes an edge sent again", registry=REGISTRY)
ANSWER_SECONDS: Final = Histogram(
    "collm_question_seconds",
    "From an edge's question to its answer",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
    registry=REGISTRY,
)
ACTIVE: Final = Gauge(
    "collm_answers_active", "Answers under way at an edge that serves several", registry=REGISTRY
)

HTTP_REQUESTS: Final = Counter(
    "collm_http_requests", "Requests answered, by address and status", ["route", "status"],
    registry=REGISTRY,
)  # fmt: skip
HTTP_ACTIVE: Final = Gauge("collm_http_active", "Requests under way", registry=REGISTRY)
HTTP_FIRST_TOKEN: Final = Histogram(
    "collm_http_first_token_seconds",
    "From a request to the first token of an answer",
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
    registry=REGISTRY,
)
HTTP_BETWEEN_TOKENS: Final = Histogram(
    "collm_http_between_tokens_seconds",
    "From one token of an answer to the next; 0 for those that came together",
    buckets=(0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
    registry=REGISTRY,
)
