"""What a program that uses the client holds in its hands besides the events, and the bounds of the client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import fields, frozen

from ..core.reasons import Reason, Refused


@frozen
class LiveFrame:
    """Live output: not journaled, never sent again. `data` is bytes, or the JSON value of a server that sends one."""

    turn: str
    epoch: int
    output_seq: int
    media_time: int | None
    data: Any


@frozen
class LiveSkipped:
    """Live output that this attachment did not get: an inclusive range of `output_seq`."""

    turn: str
    from_output_seq: int
    to_output_seq: int
    count: int
    reason: str


@frozen
class Telemetry:
    """Counters that the server sends on the telemetry lane. `dropped_total` says how many of these were shed."""

    counters: Mapping[str, Any]
    dropped_total: int


@frozen
class Recovered:
    """The connection was lost and is there again; what follows continues exactly where the stream stood.

    `attempts` connections were tried, `away_s` seconds passed. `turn` is the status of the turn in flight now, if any;
    `pending_requests` are the questions open now.
    """

    attempts: int
    away_s: float
    turn: Mapping[str, Any] | None
    pending_requests: Sequence[Mapping[str, Any]]


@frozen
class StaleCursor:
    """The log no longer reaches back to where this stream stood: what lies between is gone from here.

    The events from `floor_cursor` on follow. `reason` is `stale_cursor`, or `cursor_epoch_changed` when the log was
    restored or reset: then seqs begin anew and whatever was derived from earlier events has to be thrown away.
    """

    reason: Reason
    floor_cursor: str
    head_cursor: str
    log_epoch: int


@frozen
class Attached:
    """The answer to attach. `turn` is the status of the turn in flight; `pending_requests` the questions open now."""

    attachment: str
    generation: int
    log_epoch: int
    recovered: bool
    floor_cursor: str
    head_cursor: str
    turn: Mapping[str, Any] | None
    pending_requests: Sequence[Mapping[str, Any]]


@frozen
class Server:
    """Who answered: the server of the current connection, or of the last one."""

    name: str
    version: str
    connection: str
    limits: Mapping[str, Any]
    methods: Sequence[str]


class Disconnected(Exception):
    """There is no connection and none will be made: the server cannot be reached, or said not to come back.

    `code` is the websocket close code or the HTTP status, None where the network gave neither; `tries` how many
    connections were tried.
    """

    def __init__(self, message: str, *, code: int | None = None, tries: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.tries = tries


class OutcomeUnknown(Exception):
    """No answer came in time, so the request may have been carried out or not. Asking again with the same `key` tells
    which: what was done before is answered as it was, with `duplicate`.
    """

    def __init__(self, method: str, key: str | None, message: str) -> None:
        super().__init__(f"{method}: {message}")
        self.method = method
        self.key = key


@frozen
class Bounds:
    """Every bound of a client. Times in ms, sizes in bytes, unless the name says otherwise."""

    buffer_items_max: int = 256
    """Items read for a program that has not taken them yet; over it the socket is not read."""
    buffer_bytes_max: int = 4_194_304
    stuck_ms: int = 1_000
    """So long a full buffer may hold up a reader of another session; then its attachment is resumed later."""
    calls_in_flight_max: int = 32
    calls_waiting_max: int = 1_024
    call_tries_max: int = 8
    """Connections on which one request is sent: a request that ends every connection is given up."""
    connect_ms_max: int = 10_000
    answer_ms_max: int = 120_000
    """The longest a caller waits for an answer, lost connections included."""
    give_up_ms: int = 900_000
    """After so long without a connection the client stops."""
    backoff_base_ms: int = 400
    backoff_factor: int = 2
    backoff_ms_max: int = 10_000
    stable_ms: int = 5_000
    """A connection that held so long, or brought an event, makes the next wait the shortest again."""
    ping_interval_ms: int = 20_000
    silence_ms_max: int = 40_000
    write_stall_ms_max: int = 30_000
    close_ms_max: int = 2_000
    poll_base_ms: int = 25
    """Between two looks at a turn whose events nobody follows; doubled up to `poll_ms_max`."""
    poll_ms_max: int = 1_000
    message_bytes_max: int = 1_048_576
    """The longest message the server takes."""
    incoming_message_bytes_max: int = 8_388_608
    ahead_items_max: int = 2_048
    ingest_items: int = 32
    """A sender of records sends when so many wait, or after `ingest_ms` with something of a turn among them."""
    ingest_ms: int = 250
    ingest_idle_ms: int = 5_000
    ingest_items_max: int = 256
    """Records of one batch."""
    ingest_waiting_max: int = 1_024
    """Records that are not acknowledged; over it whoever has more to say waits."""

    def __attrs_post_init__(self) -> None:
        for bound in fields(Bounds):
            assert getattr(self, bound.name) > 0, bound.name
        assert self.backoff_base_ms <= self.backoff_ms_max
        assert self.ping_interval_ms < self.silence_ms_max
        assert self.poll_base_ms <= self.poll_ms_max
        assert self.ingest_items <= self.ingest_items_max <= self.ingest_waiting_max


DEFAULT_BOUNDS = Bounds()


def reason_of(word: Any) -> Reason:
    """The reason of a wire word; one that this version does not know is `internal`, its word stays in the data."""
    try:
        return Reason(word)
    except ValueError:
        return Reason.INTERNAL


def refused_by(error: Mapping[str, Any]) -> Refused:
    """The exception for a JSON-RPC error object."""
    data = dict(error.get("data") or {})
    reason, after = reason_of(data.get("code")), data.pop("retry_after_ms", None)
    data.pop("temporary", None)
    if reason.value == data.get("code"):
        del data["code"]
    message = str(error.get("message", "no message"))
    return Refused(reason, message, None if after is None else after / 1000, data)
