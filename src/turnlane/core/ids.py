"""Names of things. All are text on the wire and in the log; the types exist so that one is not passed for another.

Rule of form (docs/protocol.md): an id or key given from outside is 1 to 128 printable characters. An id made by us has
the form `<kind>_<32 hex digits>`, so that "an id that only we could have given" can be told from a client's own.
"""

from __future__ import annotations

from typing import Final, NewType

SessionId = NewType("SessionId", str)
TurnId = NewType("TurnId", str)
DispatchId = NewType("DispatchId", str)
RunId = NewType("RunId", str)
RequestId = NewType("RequestId", str)
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


def session_stream(tenant: Tenant, session: SessionId) -> StreamName:
    """The full stream name of a session. It begins with the tenant: no reader of one can spell a stream of another."""
    return StreamName(f"{tenant}/session/{session}")


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


def split_stream(stream: StreamName) -> tuple[Tenant, str, str]:
    """Tenant, kind and id of a full stream name (`default/session/s-1`)."""
    tenant, kind, rest = stream.split("/", 2)
    return Tenant(tenant), kind, rest


def printable(text: object) -> bool:
    """Whether a value is usable as an id or key: text of 1 to 128 printable characters."""
    return isinstance(text, str) and 0 < len(text) <= ID_CHARS_MAX and text.isprintable()
