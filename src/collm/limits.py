"""Every bound and deadline in one place.

Sizes are bytes, times are seconds. Whoever reads foreign bytes checks them against a
`Limits` before taking memory for them; whoever waits, waits for one of its deadlines.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one process; the defaults fit a 24 GiB machine and models up to a few billion."""

    # wire
    max_message_bytes: int = 8 * 2**20
    max_rows_per_append: int = 1024
    max_hidden_size: int = 32_768
    max_draft_tokens: int = 256
    max_questions: int = 64
    """Unanswered requests one client may have out at a time."""
    max_text_bytes: int = 4096
    """Longest string (fingerprint, reason, version) inside a message."""
    max_token_id: int = 2**24
    max_new_tokens: int = 1_000_000
    max_stop_ids: int = 64
    max_positions: int = 2**24
    """Beyond any model's context; keeps position arithmetic far from overflow."""
    max_layers: int = 4096
    max_padding_bytes: int = 256 * 2**10
    """Of a Heartbeat and of its answer."""
    max_cost_entries: int = 1024
    """Figures that a cloud may tell of itself."""
    max_tiers: int = 8
    """Servers, one above the other, that are told of."""
    max_tier_text_bytes: int = 200
    """Longest address, or fault, of one of them."""

    # constraints (what the parser itself may use: `runtime.constraints`)
    max_constraint_bytes: int = 64 * 2**10
    """Of a JSON schema."""
    max_expression_bytes: int = 4 * 2**10
    """Of a regular expression, a grammar, or all expressions in a JSON schema: they are dearer."""

    # link
    max_queued_frames: int = 1024
    max_queued_bytes: int = 64 * 2**20
    """Frames and bytes waiting in one direction of one link before its sender has to wait."""

    # sessions
    max_sessions: int = 64
    """Sessions one cloud process holds at once."""
    spare_links: int = 64
    """Links beyond those of sessions: for probes, and for whoever has not said Hello yet."""
    max_identity_sessions: int = 0
    """Of one identity at once; 0: as many as there are."""
    identity_bytes_per_second: float = 0.0
    """What one identity may send; it is read no faster. 0: any."""
    identity_tokens_per_second: float = 0.0
    """What one identity is answered. 0: any."""
    max_kv_bytes: int = 4 * 2**30
    """Caches and pending states of all sessions of one cloud process."""
    work_seconds: float = 5.0
    """A session that spoke within this time is at work: its memory and its place are not given to
    a new one."""
    kv_step: int = 256
    """KV buffers grow in steps of this many positions."""
    prefill_rows: int = 128
    """Most rows in one call of a block."""
    turn_rows: int = 32
    """Most pending positions that a cloud runs for one session before others have their turn."""

    # files
    max_manifest_bytes: int = 4 * 2**20
    max_config_bytes: int = 4 * 2**20
    max_prompt_bytes: int = 1 * 2**20
    max_prompt_lines: int = 100_000
    max_exit_bytes: int = 2**30
    max_profile_bytes: int = 4 * 2**20
    max_acceptance_bytes: int = 64 * 2**20

    # fetching
    max_listing_bytes: int = 2**20
    """A server's list of its artifacts."""
    max_http_clients: int = 256
    """Connections and requests at once at the server of artifacts."""
    fetch_window_seconds: float = 20.0
    """A server that answers with silence, or too slowly, for this long is given up for a while."""
    fetch_window_bytes: int = 20_000
    """What it has to send in such a window, or in an attempt, for that to count as progress."""
    fetch_attempts: int = 5
    """Vain attempts in a row, for each source, before a file is given up."""
    fetch_pause_seconds: float = 0.2
    """Wait after a vain attempt; doubles, with jitter, up to the longest."""
    fetch_longest_pause_seconds: float = 5.0
    store_lock_seconds: float = 10.0
    store_wait_seconds: float = 120.0
    """How long another process may hold a file it fetches without a byte of progress."""

    # the OpenAI-compatible server
    max_http_body_bytes: int = 4 * 2**20
    max_http_choices: int = 64
    """Answers to one request: prompts times `n`."""
    max_http_requests: int = 512
    """Questions at once whose bodies have come; beyond: 429."""
    max_http_connections: int = 640
    """Beyond, those that ask nothing are closed, the longest quiet first; requests get a 503 where
    all are at work."""
    http_header_seconds: float = 10.0
    """Longest wait for a request's header once it or its connection has begun."""
    http_body_seconds: float = 30.0
    """Longest wait for a request's body."""
    http_send_seconds: float = 60.0
    """A client that takes nothing for this long is given up."""
    http_quiet_seconds: float = 15.0
    """A stream without news gets a comment this often, for what is in between not to give up."""
    http_shutdown_seconds: float = 5.0
    """What streams under way get when the server is told to end."""

    # deadlines
    connect_seconds: float = 4.0
    send_seconds: float = 10.0
    """Longest wait for room when the other side of a link takes no frames."""
    linger_seconds: float = 0.5
    """How long closing a link waits for frames already sent (a Bye) to get out."""
    keepalive_seconds: float = 10.0
    """A silent link is probed this often; gRPC allows no less than 10."""
    keepalive_timeout_seconds: float = 5.0
    """A probe unanswered for this long means that the other side is dead."""
    verdict_seconds: float = 60.0
    """Longest wait for the answer to one Verify, or for the next token of a Generate."""
    idle_seconds: float = 600.0
    """A cloud session that says nothing for this long is closed."""
    lifetime_seconds: float = 86_400.0
    """A cloud session is over after so long, whatever it says."""
    spawn_seconds: float = 60.0
    """Longest wait for a cloud process of our own to come up."""
    shutdown_seconds: float = 5.0
    resume_seconds: float = 30.0
    """How long a client whose link broke looks for a cloud before it gives the answer up."""
    above_seconds: float = 5.0
    """How long an edge server looks for the cloud above it before its clients look elsewhere."""
    redial_seconds: float = 0.1
    """Wait after the first vain attempt to reconnect; doubles, with jitter, up to the longest."""
    redial_longest_seconds: float = 1.0
    detached_seconds: float = 3.0
    """How long a cloud keeps a session whose link broke; later it is replayed from its start."""
    probe_seconds: float = 5.0
    """Longest wait for the answer to one probe of a link."""
    retry_seconds: float = 2.0
    """What a cloud without room tells a client to wait."""


DEFAULT_LIMITS = Limits()
