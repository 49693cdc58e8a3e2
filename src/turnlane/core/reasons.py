"""Why: the closed list of reason codes, and the three ways of saying no.

A code is written once here and is wire word, log field and metric label everywhere. No message is ever parsed.
Each row: kind, temporary (a retry with the same key may succeed), JSON-RPC number, HTTP status. The rows are those of
the registry (docs/registry.md) that are built; a house test compares the two, and another looks for a test of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from attrs import field, frozen


class Kind(Enum):
    """What sort of no (or end) a reason is."""

    REFUSED = "refused"
    """Nothing happened."""
    DEFERRED = "deferred"
    """Nothing happened yet; try again after the time given."""
    FAILURE = "failure"
    """The world let us down: disk, peer, provider."""
    ENDING = "ending"
    """Why a turn ended."""
    NOTICE = "notice"
    """Why something was shed, announced or noted."""


REFUSED_NUMBER: Final = -32000
OVERLOADED_NUMBER: Final = -32001
NOT_FOUND_NUMBER: Final = -32002
NOT_AUTHORISED_NUMBER: Final = -32003
CONFLICT_NUMBER: Final = -32004
STALE_NUMBER: Final = -32005
PARSE_NUMBER: Final = -32700
INVALID_REQUEST_NUMBER: Final = -32600
UNKNOWN_METHOD_NUMBER: Final = -32601
INVALID_PARAMS_NUMBER: Final = -32602
INTERNAL_NUMBER: Final = -32603

_R, _D, _F, _E, _N = Kind.REFUSED, Kind.DEFERRED, Kind.FAILURE, Kind.ENDING, Kind.NOTICE


class Reason(Enum):
    """One code for each no, each end and each notice; `value` is the word on the wire."""

    kind: Kind
    temporary: bool
    rpc_number: int
    http_status: int

    def __new__(
        cls,
        word: str,
        kind: Kind = _R,
        temporary: bool = False,
        rpc_number: int = REFUSED_NUMBER,
        http_status: int = 409,
    ) -> Reason:
        member = object.__new__(cls)
        member._value_ = word
        member.kind = kind
        member.temporary = temporary
        member.rpc_number = rpc_number
        member.http_status = http_status
        return member

    # the door and the gate
    OVERLOADED = "overloaded", _R, True, OVERLOADED_NUMBER, 503
    SESSION_ENDED = "session_ended", _R, False, REFUSED_NUMBER, 409
    SESSION_DRAINING = "session_draining", _R, False, REFUSED_NUMBER, 409
    UNKNOWN_SESSION = "unknown_session", _R, False, NOT_FOUND_NUMBER, 404
    EXTERNAL_ID_TAKEN = "external_id_taken", _R, False, CONFLICT_NUMBER, 409
    ID_IN_USE = "id_in_use", _R, False, CONFLICT_NUMBER, 409
    KEY_CONFLICT = "key_conflict", _R, False, CONFLICT_NUMBER, 409
    CANCELLED_BEFORE_START = "cancelled_before_start", _R, False, REFUSED_NUMBER, 409
    NO_ACTIVE_TURN = "no_active_turn", _R, False, REFUSED_NUMBER, 409
    TURN_MISMATCH = "turn_mismatch", _R, False, CONFLICT_NUMBER, 409
    TURN_ENDING = "turn_ending", _R, False, REFUSED_NUMBER, 409
    STEER_NOT_SUPPORTED = "steer_not_supported", _R, False, REFUSED_NUMBER, 409
    MERGE_FULL = "merge_full", _R, False, REFUSED_NUMBER, 409
    SUPERSEDED = "superseded", _R, False, REFUSED_NUMBER, 409
    ILLEGAL_IN_PHASE = "illegal_in_phase", _R, False, REFUSED_NUMBER, 409
    TURN_CLOSED = "turn_closed", _R, False, REFUSED_NUMBER, 409
    UNKNOWN_TURN = "unknown_turn", _R, False, NOT_FOUND_NUMBER, 404
    UNKNOWN_NODE = "unknown_node", _R, False, NOT_FOUND_NUMBER, 404
    CANCEL_FENCE_APPLIED = "cancel_fence_applied", _R, False, REFUSED_NUMBER, 409
    SUBSESSION_LIMIT = "subsession_limit", _R, False, REFUSED_NUMBER, 409
    TURN_IN_FLIGHT = "turn_in_flight", _R, True, CONFLICT_NUMBER, 409
    INPUT_TOO_LARGE = "input_too_large", _R, False, INVALID_PARAMS_NUMBER, 413
    DISPATCH_MODE_REQUIRED = "dispatch_mode_required", _R, False, REFUSED_NUMBER, 409
    SESSION_STARTING = "session_starting", _D, True, REFUSED_NUMBER, 503
    SESSION_WAKING = "session_waking", _D, True, REFUSED_NUMBER, 503
    DRAINING = "draining", _D, True, REFUSED_NUMBER, 503
    ADMISSION_CAPACITY_DEFER = "admission_capacity_defer", _D, True, OVERLOADED_NUMBER, 503
    ADMISSION_CAPACITY_REJECT = "admission_capacity_reject", _R, True, OVERLOADED_NUMBER, 503
    CP_ADMISSION_REJECT_QUOTA = "cp_admission_reject_quota", _R, True, OVERLOADED_NUMBER, 429
    ADMISSION_CAPACITY_ALLOW = "admission_capacity_allow", _N, False, REFUSED_NUMBER, 200
    PROFILE_UNSUPPORTED = "profile_unsupported", _R, False, INVALID_PARAMS_NUMBER, 422
    AUTHORITY_EPOCH_MISMATCH = "authority_epoch_mismatch", _R, False, REFUSED_NUMBER, 409
    STALE_EPOCH_REJECT = "stale_epoch_reject", _R, False, CONFLICT_NUMBER, 409
    DEAUTHORIZED_DRAIN = "deauthorized_drain", _R, False, REFUSED_NUMBER, 409
    # dispatch
    UNKNOWN_DISPATCH = "unknown_dispatch", _R, False, NOT_FOUND_NUMBER, 404
    CLAIM_TOKEN_REQUIRED = "claim_token_required", _R, False, NOT_AUTHORISED_NUMBER, 403
    CLAIM_LOST = "claim_lost", _R, False, CONFLICT_NUMBER, 409
    CLAIM_INVALID = "claim_invalid", _R, False, CONFLICT_NUMBER, 409
    ALREADY_ENDED = "already_ended", _R, False, CONFLICT_NUMBER, 409
    NOT_CLAIMED = "not_claimed", _R, False, CONFLICT_NUMBER, 409
    DISPATCH_MODE_CONFLICT = "dispatch_mode_conflict", _R, False, CONFLICT_NUMBER, 409
    CLAIMS_OPEN = "claims_open", _R, False, CONFLICT_NUMBER, 409
    EXTERNAL_CLAIM_ACTIVE = "external_claim_active", _R, True, CONFLICT_NUMBER, 409
    WORKER_NOT_AVAILABLE = "worker_not_available", _R, True, CONFLICT_NUMBER, 409
    INVALID_TRANSITION = "invalid_transition", _R, False, CONFLICT_NUMBER, 409
    WORKER_LOST = "worker_lost", _E, False, REFUSED_NUMBER, 200
    WORKER_STOPPED = "worker_stopped", _N, False, REFUSED_NUMBER, 200
    # bindings and ingest
    BOUND_ELSEWHERE = "bound_elsewhere", _R, False, CONFLICT_NUMBER, 409
    FENCED_GENERATION = "fenced_generation", _R, False, CONFLICT_NUMBER, 409
    EMPTY_BATCH = "empty_batch", _R, False, INVALID_PARAMS_NUMBER, 422
    INVALID_CURSOR_RANGE = "invalid_cursor_range", _R, False, INVALID_PARAMS_NUMBER, 422
    EVENT_CONFLICT = "event_conflict", _R, False, CONFLICT_NUMBER, 409
    DUPLICATE_IN_BATCH = "duplicate_in_batch", _R, False, INVALID_PARAMS_NUMBER, 422
    OUT_OF_ORDER = "out_of_order", _R, False, CONFLICT_NUMBER, 409
    TURN_REQUIRED = "turn_required", _R, False, INVALID_PARAMS_NUMBER, 422
    EXECUTOR_EVENT_INVALID = "executor_event_invalid", _F, False, REFUSED_NUMBER, 200
    INGEST_FAILED = "ingest_failed", _F, False, REFUSED_NUMBER, 409
    WORKER_FAILED = "worker_failed", _N, False, REFUSED_NUMBER, 200
    # authority
    LEASE_HELD = "lease_held", _R, True, CONFLICT_NUMBER, 409
    LEASE_OWNER_MISMATCH = "lease_owner_mismatch", _R, False, CONFLICT_NUMBER, 409
    LEASE_EXPIRED = "lease_expired", _R, False, CONFLICT_NUMBER, 409
    LEASE_LOST = "lease_lost", _R, False, CONFLICT_NUMBER, 409
    LEASE_NOT_HELD = "lease_not_held", _R, False, CONFLICT_NUMBER, 409
    NOT_OWNER = "not_owner", _R, True, CONFLICT_NUMBER, 409
    # the compatibility contract
    INVALID_COMMAND = "invalid_command", _R, False, INVALID_PARAMS_NUMBER, 400
    INVALID_DISPATCH_ID = "invalid_dispatch_id", _R, False, INVALID_PARAMS_NUMBER, 400
    DUPLICATE_DISPATCH = "duplicate_dispatch", _R, False, CONFLICT_NUMBER, 409
    LEASE_NOT_EXTENDED = "lease_not_extended", _R, False, CONFLICT_NUMBER, 409
    REPLAY_OUT_OF_ORDER = "replay_out_of_order", _R, False, CONFLICT_NUMBER, 409
    LEADER_NOTIFICATION_DEFERRED = "leader_notification_deferred", _N, False, REFUSED_NUMBER, 200
    # requests and effects
    REQUEST_METHOD_MISMATCH = "request_method_mismatch", _R, False, CONFLICT_NUMBER, 409
    ALREADY_ANSWERED = "already_answered", _R, False, CONFLICT_NUMBER, 409
    REQUEST_CLOSED = "request_closed", _R, False, CONFLICT_NUMBER, 409
    UNKNOWN_REQUEST = "unknown_request", _R, False, NOT_FOUND_NUMBER, 404
    ROLE_NOT_AUTHORIZED = "role_not_authorized", _R, False, NOT_AUTHORISED_NUMBER, 403
    INVALID_ANSWER = "invalid_answer", _R, False, INVALID_PARAMS_NUMBER, 422
    EFFECT_IN_FLIGHT = "effect_in_flight", _R, False, CONFLICT_NUMBER, 409
    EFFECT_UNKNOWN = "effect_unknown", _R, False, CONFLICT_NUMBER, 409
    EFFECT_KEY_CONFLICT = "effect_key_conflict", _R, False, CONFLICT_NUMBER, 409
    # runs, their files and their corpora
    INVALID_EVENT_TYPE = "invalid_event_type", _R, False, INVALID_PARAMS_NUMBER, 400
    INVALID_PAYLOAD = "invalid_payload", _R, False, INVALID_PARAMS_NUMBER, 400
    INVALID_KEY = "invalid_key", _R, False, INVALID_PARAMS_NUMBER, 400
    INVALID_OWNER = "invalid_owner", _R, False, INVALID_PARAMS_NUMBER, 400
    INVALID_RUN_ID = "invalid_run_id", _R, False, INVALID_PARAMS_NUMBER, 400
    NUMBER_OUT_OF_RANGE = "number_out_of_range", _R, False, INVALID_PARAMS_NUMBER, 400
    TOO_DEEP = "too_deep", _R, False, INVALID_PARAMS_NUMBER, 400
    PAYLOAD_TOO_LARGE = "payload_too_large", _R, False, INVALID_PARAMS_NUMBER, 413
    RUN_ENDED = "run_ended", _R, False, REFUSED_NUMBER, 400
    RUN_FULL = "run_full", _R, False, CONFLICT_NUMBER, 409
    WRONG_SEQ = "wrong_seq", _R, False, CONFLICT_NUMBER, 409
    UNREADABLE = "unreadable", _R, False, INVALID_PARAMS_NUMBER, 400
    SCHEMA_MISMATCH = "schema_mismatch", _R, False, INVALID_PARAMS_NUMBER, 400
    VERSION_MISMATCH = "version_mismatch", _R, False, INVALID_PARAMS_NUMBER, 400
    EMPTY_CORPUS = "empty_corpus", _R, False, INVALID_PARAMS_NUMBER, 400
    SEQ_NOT_INCREASING = "seq_not_increasing", _R, False, INVALID_PARAMS_NUMBER, 400
    ILLEGAL_TRANSITION = "illegal_transition", _R, False, INVALID_PARAMS_NUMBER, 400
    EXPECTATION_MISMATCH = "expectation_mismatch", _R, False, INVALID_PARAMS_NUMBER, 400
    # how turns end
    COMPLETED = "completed", _E, False, REFUSED_NUMBER, 200
    USER_CANCEL = "user_cancel", _E, False, REFUSED_NUMBER, 200
    BARGE_IN = "barge_in", _E, False, REFUSED_NUMBER, 200
    INTERRUPTED = "interrupted", _E, False, REFUSED_NUMBER, 200
    PARENT_ENDED = "parent_ended", _E, False, REFUSED_NUMBER, 200
    SESSION_CLOSED = "session_closed", _E, False, REFUSED_NUMBER, 200
    DETACHED = "detached", _E, False, REFUSED_NUMBER, 200
    OPERATOR_CANCEL = "operator_cancel", _E, False, REFUSED_NUMBER, 200
    TURN_BUDGET_EXHAUSTED = "turn_budget_exhausted", _E, False, REFUSED_NUMBER, 200
    REQUEST_EXPIRED = "request_expired", _E, False, REFUSED_NUMBER, 200
    PROVIDER_FAILURE = "provider_failure", _E, False, REFUSED_NUMBER, 200
    NODE_TIMEOUT_OR_FAILURE = "node_timeout_or_failure", _E, False, REFUSED_NUMBER, 200
    NO_LEGAL_CONTINUATION = "no_legal_continuation", _E, False, REFUSED_NUMBER, 200
    AUTHORITY_LOSS = "authority_loss", _E, False, REFUSED_NUMBER, 200
    ATTEMPTS_EXHAUSTED = "attempts_exhausted", _F, False, REFUSED_NUMBER, 200
    # notices
    TURN_CANCELLED = "turn_cancelled", _N, False, REFUSED_NUMBER, 200
    SHED = "shed", _N, False, REFUSED_NUMBER, 200
    REPLACED = "replaced", _N, False, REFUSED_NUMBER, 200
    RIGHT_WITHDRAWN = "right_withdrawn", _N, False, REFUSED_NUMBER, 200
    # the journal
    STORAGE_FULL = "storage_full", _R, True, REFUSED_NUMBER, 503
    JOURNAL_BROKEN = "journal_broken", _F, True, INTERNAL_NUMBER, 500
    CORRUPT_STREAM = "corrupt_stream", _F, False, INTERNAL_NUMBER, 500
    ALREADY_OPEN = "already_open", _R, False, REFUSED_NUMBER, 409
    STATE_IN_USE = "state_in_use", _R, False, REFUSED_NUMBER, 409
    STATE_NOT_FOUND = "state_not_found", _R, False, NOT_FOUND_NUMBER, 404
    STATE_NOT_OURS = "state_not_ours", _R, False, REFUSED_NUMBER, 409
    STATE_INCOMPLETE = "state_incomplete", _R, False, REFUSED_NUMBER, 409
    STATE_DAMAGED = "state_damaged", _R, False, INTERNAL_NUMBER, 500
    FORMAT_TOO_NEW = "format_too_new", _R, False, REFUSED_NUMBER, 409
    REMOTE_FILESYSTEM = "remote_filesystem", _R, False, REFUSED_NUMBER, 409
    NOT_WRITABLE = "not_writable", _R, False, REFUSED_NUMBER, 409
    MODES_TOO_WIDE = "modes_too_wide", _R, False, REFUSED_NUMBER, 409
    READERS_FULL = "readers_full", _R, True, REFUSED_NUMBER, 503
    # the wire
    PARSE_ERROR = "parse_error", _R, False, PARSE_NUMBER, 400
    INVALID_REQUEST = "invalid_request", _R, False, INVALID_REQUEST_NUMBER, 400
    INVALID_PARAMS = "invalid_params", _R, False, INVALID_PARAMS_NUMBER, 422
    UNKNOWN_METHOD = "unknown_method", _R, False, UNKNOWN_METHOD_NUMBER, 404
    NOT_INITIALIZED = "not_initialized", _R, False, INVALID_REQUEST_NUMBER, 409
    ALREADY_INITIALIZED = "already_initialized", _R, False, INVALID_REQUEST_NUMBER, 409
    BAD_HANDSHAKE = "bad_handshake", _R, False, INVALID_REQUEST_NUMBER, 400
    UPGRADE_REQUIRED = "upgrade_required", _R, False, INVALID_REQUEST_NUMBER, 426
    UNKNOWN_PATH = "unknown_path", _R, False, INVALID_REQUEST_NUMBER, 404
    UNKNOWN_SUBPROTOCOL = "unknown_subprotocol", _R, False, INVALID_REQUEST_NUMBER, 400
    HEADERS_TOO_LARGE = "headers_too_large", _R, False, INVALID_REQUEST_NUMBER, 431
    HANDSHAKE_TIMEOUT = "handshake_timeout", _R, False, INVALID_REQUEST_NUMBER, 408
    TOKEN_IN_URL = "token_in_url", _R, False, NOT_AUTHORISED_NUMBER, 401
    TICKET_INVALID = "ticket_invalid", _R, False, NOT_AUTHORISED_NUMBER, 401
    PROTOCOL_VIOLATION = "protocol_violation", _R, False, INVALID_REQUEST_NUMBER, 400
    SLOW_READER = "slow_reader", _R, False, REFUSED_NUMBER, 503
    RATE_LIMITED = "rate_limited", _R, True, OVERLOADED_NUMBER, 429
    INVALID_CURSOR = "invalid_cursor", _R, False, INVALID_PARAMS_NUMBER, 400
    CURSOR_MISMATCH = "cursor_mismatch", _R, False, INVALID_PARAMS_NUMBER, 400
    STALE_CURSOR = "stale_cursor", _R, False, STALE_NUMBER, 410
    CURSOR_EPOCH_CHANGED = "cursor_epoch_changed", _R, False, STALE_NUMBER, 410
    NO_SAVED_CURSOR = "no_saved_cursor", _R, False, NOT_FOUND_NUMBER, 404
    UNKNOWN_ATTACHMENT = "unknown_attachment", _R, False, NOT_FOUND_NUMBER, 404
    ACK_OUT_OF_RANGE = "ack_out_of_range", _R, False, INVALID_PARAMS_NUMBER, 422
    READ_ONLY = "read_only", _R, False, NOT_AUTHORISED_NUMBER, 403
    TOO_MANY_ATTACHMENTS = "too_many_attachments", _R, False, OVERLOADED_NUMBER, 429
    # security
    MISSING_AUTHORIZATION = "missing_authorization", _R, False, NOT_AUTHORISED_NUMBER, 401
    INVALID_AUTHORIZATION_SCHEME = "invalid_authorization_scheme", _R, False, NOT_AUTHORISED_NUMBER, 401
    INVALID_TOKEN = "invalid_token", _R, False, NOT_AUTHORISED_NUMBER, 401
    TOKEN_EXPIRED = "token_expired", _R, False, NOT_AUTHORISED_NUMBER, 401
    TOKEN_NOT_YET_VALID = "token_not_yet_valid", _R, False, NOT_AUTHORISED_NUMBER, 401
    MISSING_IAT = "missing_iat", _R, False, NOT_AUTHORISED_NUMBER, 401
    MISSING_JTI = "missing_jti", _R, False, NOT_AUTHORISED_NUMBER, 401
    MISSING_SCOPE = "missing_scope", _R, False, NOT_AUTHORISED_NUMBER, 403
    SUBJECT_MISMATCH = "subject_mismatch", _R, False, NOT_AUTHORISED_NUMBER, 403
    ORIGIN_NOT_ALLOWED = "origin_not_allowed", _R, False, NOT_AUTHORISED_NUMBER, 403
    HOST_NOT_ALLOWED = "host_not_allowed", _R, False, NOT_AUTHORISED_NUMBER, 403
    # workers and projections
    OWNER_MISMATCH = "owner_mismatch", _R, False, NOT_AUTHORISED_NUMBER, 403
    INVALID_WORKER_ID = "invalid_worker_id", _R, False, INVALID_PARAMS_NUMBER, 400
    METADATA_NOT_OBJECT = "metadata_not_object", _R, False, INVALID_PARAMS_NUMBER, 400
    HEARTBEAT_RATE = "heartbeat_rate", _R, True, OVERLOADED_NUMBER, 429
    PROJECTION_BEHIND = "projection_behind", _R, True, OVERLOADED_NUMBER, 503
    INVALID_TOPIC = "invalid_topic", _R, False, INVALID_PARAMS_NUMBER, 400
    REBUILD_RUNNING = "rebuild_running", _R, True, CONFLICT_NUMBER, 409
    SEQUENCE_GAP = "sequence_gap", _N, False, REFUSED_NUMBER, 200
    FLOOR_PASSED = "floor_passed", _N, False, REFUSED_NUMBER, 200
    FOLD_FAILED = "fold_failed", _N, False, REFUSED_NUMBER, 200
    CHECKPOINT_AHEAD = "checkpoint_ahead", _N, False, REFUSED_NUMBER, 200
    # HTTP
    NOT_FOUND = "not_found", _R, False, NOT_FOUND_NUMBER, 404
    UNKNOWN_ROUTE = "unknown_route", _R, False, NOT_FOUND_NUMBER, 404
    METHOD_NOT_ALLOWED = "method_not_allowed", _R, False, UNKNOWN_METHOD_NUMBER, 405
    INVALID_QUERY = "invalid_query", _R, False, INVALID_PARAMS_NUMBER, 400
    INTERNAL = "internal", _F, False, INTERNAL_NUMBER, 500
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type", _R, False, INVALID_REQUEST_NUMBER, 415
    BODY_TOO_LARGE = "body_too_large", _R, False, INVALID_REQUEST_NUMBER, 413
    INVALID_JSON = "invalid_json", _R, False, PARSE_NUMBER, 400
    WRONG_SHAPE = "wrong_shape", _R, False, INVALID_PARAMS_NUMBER, 422
    WRITE_PATH_FROZEN = "write_path_frozen", _R, False, REFUSED_NUMBER, 503
    OUTCOME_UNKNOWN = "outcome_unknown", _F, True, INTERNAL_NUMBER, 500
    CURSOR_CONFLICT = "cursor_conflict", _R, False, INVALID_PARAMS_NUMBER, 400
    TOO_MANY_FOLLOWERS = "too_many_followers", _R, True, OVERLOADED_NUMBER, 429
    TAIL_ELAPSED = "tail_elapsed", _N, False, REFUSED_NUMBER, 200
    # cutover
    OUTSIDE_CANARY = "outside_canary", _R, False, REFUSED_NUMBER, 503
    # live delivery over HTTP
    TOKEN_TOO_OLD = "token_too_old", _R, False, NOT_AUTHORISED_NUMBER, 401
    TOKEN_REVOKED = "token_revoked", _R, False, NOT_AUTHORISED_NUMBER, 401
    FORBIDDEN_TOPIC = "forbidden_topic", _R, False, NOT_AUTHORISED_NUMBER, 403
    RETENTION_FLOOR_BREACH = "retention_floor_breach", _R, False, STALE_NUMBER, 410
    REPLAY_BUDGET_EXCEEDED = "replay_budget_exceeded", _R, False, STALE_NUMBER, 410
    SLOW_CONSUMER_EVICTED = "slow_consumer_evicted", _R, False, REFUSED_NUMBER, 409
    LIVE_DELIVERY_DISABLED = "live_delivery_disabled", _R, False, REFUSED_NUMBER, 503
    POLL_INTERVAL_GUARD = "poll_interval_guard", _R, True, OVERLOADED_NUMBER, 429
    FANOUT_UNAVAILABLE = "fanout_unavailable", _R, True, REFUSED_NUMBER, 503
    KHALA_FRAME_PAYLOAD_TOO_LARGE = "khala_frame_payload_too_large", _N, False, REFUSED_NUMBER, 200
    KHALA_PUBLISH_RATE_LIMITED = "khala_publish_rate_limited", _N, False, REFUSED_NUMBER, 200
    SCOPE_CHANGED = "scope_changed", _N, False, REFUSED_NUMBER, 200
    SEND_FAILED = "send_failed", _N, False, REFUSED_NUMBER, 200
    FANOUT_ERROR = "fanout_error", _N, False, REFUSED_NUMBER, 200


@frozen
class Rejected:
    """A rule said no. Nothing happened: log, state and keys are as they were."""

    reason: Reason
    message: str
    data: Mapping[str, Any] = field(factory=dict)
    retry_after_ms: int | None = None


@frozen
class Deferred:
    """Not yet. Nothing happened; the same key may be offered again after `retry_after_ms`."""

    reason: Reason
    message: str
    retry_after_ms: int
    data: Mapping[str, Any] = field(factory=dict)


class Refused(Exception):
    """A no, raised by the embedding API and the client.

    `reason` decides; `message` is for people; `retry_after` is in seconds, or None where waiting does not help;
    `data` holds what the answer carries besides (the active turn, the floor and head of a stale cursor, ...).
    """

    def __init__(
        self, reason: Reason, message: str, retry_after: float | None = None, data: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(f"{reason.value}: {message}")
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        self.data = dict(data or {})

    @classmethod
    def of(cls, answer: Rejected | Deferred) -> Refused:
        after = answer.retry_after_ms
        return cls(answer.reason, answer.message, None if after is None else after / 1000, answer.data)


class Fenced(Exception):
    """The turn has ended (or its authority is gone): nothing of it leaves any more."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(f"{reason.value}: {message}")
        self.reason = reason
        self.message = message
