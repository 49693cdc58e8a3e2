"""The client of `turnlane.v1`: connects, comes back by itself, resumes exactly where it was.

async with turnlane.client.connect("ws://127.0.0.1:4101", token) as client:
    session = await client.open_session("s-1")
    async with session.attach("earliest") as events:
        turn = await session.start_turn({"text": "hello there"})
        async for event in events: ...
"""

from __future__ import annotations

from ..core.given import Event, Skipped, TurnOutcome
from ..core.reasons import Reason, Refused
from ..core.secret import Secret
from ..machines.session import StartAnswer
from ..machines.turn import CancelAnswer
from .client import Client, connect
from .ingest import IngestSender
from .session import Events, Session, TurnHandle
from .values import (
    Attached,
    Bounds,
    Disconnected,
    LiveFrame,
    LiveSkipped,
    OutcomeUnknown,
    Recovered,
    Server,
    StaleCursor,
    Telemetry,
)

__all__ = [
    "Attached",
    "Bounds",
    "CancelAnswer",
    "Client",
    "Disconnected",
    "Event",
    "Events",
    "IngestSender",
    "LiveFrame",
    "LiveSkipped",
    "OutcomeUnknown",
    "Reason",
    "Recovered",
    "Refused",
    "Secret",
    "Server",
    "Session",
    "Skipped",
    "StaleCursor",
    "StartAnswer",
    "Telemetry",
    "TurnHandle",
    "TurnOutcome",
    "connect",
]
