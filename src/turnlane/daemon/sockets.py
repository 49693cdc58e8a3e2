"""What a careful user of a socket needs and trio does not bring: the one below a stream, its reset, a cheaper lock."""

from __future__ import annotations

import socket
import struct

import trio


def plain_socket(stream: object) -> trio.socket.SocketType | None:
    """The socket at the bottom of a stream, under TLS or not."""
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    return stream.socket if isinstance(stream, trio.SocketStream) else None


def reset(plain: trio.socket.SocketType) -> None:
    """Close so that the peer gets a reset, without a checkpoint: what the kernel still holds is not sent."""
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    plain.close()


class Held:
    """A lock that costs no checkpoint while it is free: the write behind it has its own."""

    __slots__ = ("_lock",)

    def __init__(self, lock: trio.StrictFIFOLock) -> None:
        self._lock = lock

    async def __aenter__(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    async def __aexit__(self, *exc: object) -> None:
        self._lock.release()
