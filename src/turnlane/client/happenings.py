"""What the client's side of a conversation is made of: calls until they are answered, and what may happen. Values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import define, frozen

from ..core.reasons import Refused
from .following import Following, Item
from .values import Recovered, Server


class Malformed(Exception):
    """The server sent what is not `turnlane.v1`. The connection is of no use."""


@define(slots=True, eq=False)
class Call:
    """One request until it is answered. `again`: it is sent once more after a lost connection."""

    id: int
    method: str
    params: Mapping[str, Any]
    following: Following | None = None
    again: bool = True
    tries: int = 0
    answer: Mapping[str, Any] | Exception | None = None
    waiter: Any = None
    """Whoever waits; never looked at here."""

    @property
    def key(self) -> str | None:
        key: str | None = self.params.get("key")
        return key

    def content(self) -> Mapping[str, Any]:
        """The parameters as of now: what concerns an attachment names the present one."""
        if self.following is None:
            return self.params
        if self.method == "session/attach":
            return self.following.attach_params()
        return {**self.params, "attachment": self.following.attachment}


@frozen
class Ready:
    """The connection is initialized."""

    server: Server


@frozen
class NotAdmitted:
    """`initialize` was refused."""

    refusal: Refused


@frozen
class Answered:
    call: Call


@frozen
class Delivered:
    """The next item of an attachment; `size` in bytes of its message."""

    following: Following
    item: Item | Recovered
    size: int


@frozen
class Ended:
    """Nothing more comes; `error` says why, None at the end of the session."""

    following: Following
    error: Exception | None


@frozen
class AttachLater:
    """The server cannot attach just now: call `reattach` after so many milliseconds."""

    following: Following
    after_ms: int


@frozen
class Draining:
    deadline_ms: int


Happening = Ready | NotAdmitted | Answered | Delivered | Ended | AttachLater | Draining
