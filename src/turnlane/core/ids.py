"""Names of things. All are text on the wire and in the log; the types exist so that one is not passed for another.

Rule of form (docs/protocol.md): an id or key given from outside is 1 to 128 printable characters. An id made by us has
the form `<kind>_<32 hex digits>`, so that "an id that only we could have given" can be told from a client's own.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, NewType

from .instants import MICROS_PER_MS, WallInstant

SessionId = NewType("SessionId", str)
TurnId = NewType("TurnId", str)
DispatchId = NewType("DispatchId", str)
RunId = NewType("RunId", str)
RequestId = NewType("RequestId", str)
AnyRequestId = str | int
"""With its JSON type: an executor's `77` and `"77"` are two requests. Ids of our own are text."""
EffectId = NewType("EffectId", str)
AttachmentId = NewType("AttachmentId", str)
ConnectionId = NewType("ConnectionId", str)
Tenant = NewType("Tenant", str)
StreamName = NewType("StreamName", str)
Key = NewType("Key", str)

Seq = int
Epoch = int
Generation = int

DEFAULT_TENANT: Final = Tenant("default")
ID_CHARS_MAX: Final = 128


def request_key(request: AnyRequestId) -> str:
    """A request id as text, for where only text is a name. No printable id is spelled like that of a number."""
    return request if isinstance(request, str) else f"\x01{request}"


def is_request_id(value: object) -> bool:
    """Whether a value is usable as the id of a request: a printable id, or a whole number of at most 53 bits."""
    return printable(value) or (type(value) is int and abs(value) < 2**53)


def stream_of(tenant: Tenant, kind: str, name: str) -> StreamName:
    """A full stream name. It begins with the tenant: no reader of one can spell a stream of another."""
    return StreamName(f"{tenant}/{kind}/{name}")


def session_stream(tenant: Tenant, session: SessionId) -> StreamName:
    """The full stream name of a session."""
    return stream_of(tenant, "session", session)


def run_stream(tenant: Tenant, run: RunId) -> StreamName:
    """The full stream name of a run."""
    return StreamName(f"{tenant}/run/{run}")


def run_id_of(text: str) -> RunId:
    """A run id as it is kept (lower case, hyphens) from any spelling that `uuid.UUID` reads. Else ValueError."""
    digits = text.replace("urn:", "").replace("uuid:", "").strip("{}").replace("-", "")
    if len(digits) != 32:
        raise ValueError("expected a UUID such as 0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f")
    plain = f"{int(digits, 16):032x}"
    return RunId(f"{plain[:8]}-{plain[8:12]}-{plain[12:16]}-{plain[16:20]}-{plain[20:]}")


def worker_stream(tenant: Tenant, worker_id: str) -> StreamName:
    """The full stream name of a worker. Its id has no `/` (`machines/worker.py:worker_id_of`)."""
    return StreamName(f"{tenant}/worker/{worker_id}")


def split_stream(stream: StreamName) -> tuple[Tenant, str, str]:
    """Tenant, kind and id of a full stream name (`default/session/s-1`)."""
    tenant, kind, rest = stream.split("/", 2)
    return Tenant(tenant), kind, rest


def printable(text: object) -> bool:
    """Whether a value is usable as an id or key: text of 1 to 128 printable characters."""
    return isinstance(text, str) and 0 < len(text) <= ID_CHARS_MAX and text.isprintable()


def wall_of(run_id: RunId) -> WallInstant:
    """The instant that a UUIDv7 was made of, to the millisecond."""
    return WallInstant(int(run_id.replace("-", "")[:12], 16) * MICROS_PER_MS)


def uuid7_of(wall_us: int, seed: str) -> RunId:
    """A UUIDv7 of an instant and of random text: 48 bits of milliseconds, the rest from a digest of the text."""
    digits = f"{wall_us // 1_000 & (1 << 48) - 1:012x}" + blake2b(seed.encode(), digest_size=10).hexdigest()
    variant = f"{int(digits[16], 16) & 3 | 8:x}"
    return run_id_of(f"{digits[:12]}7{digits[13:16]}{variant}{digits[17:]}")
