"""What a fast path brings: the same work with it and without it, in turn, in one run.

    python -m bench.ablations [NAME ...] [--rounds 7]

Prints, for each, the median of the ratios of the rounds (how many times faster with it) and their spread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final

import attrs
import wsproto
from wsproto.events import AcceptConnection, Request, TextMessage

from turnlane.client.splitter import Splitter
from turnlane.core.evolving import evolve
from turnlane.core.ids import SessionId
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.daemon.frames import TEXT, FrameMeter, text_frame
from turnlane.daemon.rates import Rates
from turnlane.machines.session import Session, SessionPhase
from turnlane.testing.peers import frame_bytes

from .rounds import Side, ratio

MESSAGES: Final = 2_000
COPIES: Final = 20_000
COMMAND: Final = b'{"jsonrpc":"2.0","id":7,"method":"turn/cancel","params":{"session":"s-1","turn":"turn_000001"}}'
HANDSHAKE: Final = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


def evolving() -> tuple[Side, Side]:
    """A session's state with one field changed: our copy, and `attrs.evolve`."""
    state = Session(SessionId("s"))

    def ours() -> None:
        for _ in range(COPIES):
            evolve(state, phase=SessionPhase.ACTIVE)

    def theirs() -> None:
        for _ in range(COPIES):
            attrs.evolve(state, phase=SessionPhase.ACTIVE)

    return ours, theirs


def _wsproto(client: bool) -> wsproto.WSConnection:
    """A connection of the library behind its handshake, on the receiving side."""
    near, far = wsproto.WSConnection(wsproto.ConnectionType.CLIENT), wsproto.WSConnection(wsproto.ConnectionType.SERVER)
    far.receive_data(near.send(Request(host="h", target="/")))
    list(far.events())
    near.receive_data(far.send(AcceptConnection()))
    list(near.events())
    return near if client else far


def _drained(connection: wsproto.WSConnection, data: bytes) -> int:
    connection.receive_data(data)
    return sum(isinstance(event, TextMessage) for event in connection.events())


def commands() -> tuple[Side, Side]:
    """Small commands of a client, metered: split off, and through the library."""
    data = frame_bytes(TEXT, COMMAND) * MESSAGES
    unlimited = 1_000_000_000, 1_000_000_000
    library = _wsproto(client=False)

    def meter(short: bool) -> FrameMeter:
        made = FrameMeter(DEFAULT_LIMITS, Rates(unlimited, unlimited, unlimited, unlimited), 0.0)
        made.short_frames = short
        return made

    def split() -> None:
        one = meter(True)
        assert one.feed(data, 0.0) == b"" and len(one.split) == MESSAGES

    def through() -> None:
        assert _drained(library, meter(False).feed(data, 0.0)) == MESSAGES

    return split, through


def events() -> tuple[Side, Side]:
    """What a daemon sends to the Python client, small events in one read: split off, and through the library."""
    data = text_frame(COMMAND) * MESSAGES
    library = _wsproto(client=True)

    def split() -> None:
        passed, messages, _ = Splitter(1 << 20).feed(HANDSHAKE + data, True)
        assert passed == HANDSHAKE and len(messages) == MESSAGES

    def through() -> None:
        assert _drained(library, data) == MESSAGES

    return split, through


ABLATIONS: Final[dict[str, Callable[[], tuple[Side, Side]]]] = {
    "evolve": evolving,
    "commands": commands,
    "events": events,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ablations")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ABLATIONS)}; without: all")
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    if (unknown := [name for name in chosen.names if name not in ABLATIONS]) or chosen.rounds < 1:
        parser.error(
            f"no ablation {', '.join(unknown)}: there are {', '.join(ABLATIONS)}" if unknown else "rounds >= 1"
        )
    for name in chosen.names or ABLATIONS:
        with_it, without = ABLATIONS[name]()
        what = (ABLATIONS[name].__doc__ or "").strip()
        print(f"{name:10} {ratio(without, with_it, chosen.rounds)}  {what}", flush=True)


if __name__ == "__main__":
    main()
