"""What hostile peers do, each with the endings that are right for it.

An attack is a script over a `HostileClient`, and the set of endings that a sound server gives it: HTTP statuses, close
codes, `CUT`, or `SERVED` where the connection has to live on. Any other ending is a finding, and so is a `Weakness`
that a script sees on its way (an answer that is no error, a flood that nobody stops). Most attacks are a row of a
table: what is sent and what has to come of it. Each head and each faulty frame gets a connection of its own; faulty
messages share one, since they must not end it. The others are functions.

Endings are those of `turnlane.v1` with its shipped limits. A script is given dice; nothing else in it is random.
"""

from __future__ import annotations

import itertools
import json
import random
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import trio
from attrs import frozen

from .peers import (
    BINARY,
    CLOSE,
    CONTINUATION,
    CUT,
    PING,
    PONG,
    SERVED,
    TEXT,
    Ended,
    Ending,
    HostileClient,
    Weakness,
    frame_bytes,
)

Script = Callable[[HostileClient, random.Random], Awaitable[Ending | Sequence[Ending]]]

_ERROR_CHARS_MAX: Final = 2_048
_FLOOD_FRAMES: Final = 100_000
"""More than twice the widest burst (40,000 frames of a service token)."""


@frozen
class Attack:
    """A script and its right endings. `needs_token`: it means nothing where everyone is let in."""

    name: str
    ends: frozenset[int]
    script: Script
    needs_token: bool = False

    async def __call__(self, client: HostileClient, dice: random.Random) -> Sequence[Ending]:
        """Run the script once; every ending that it saw. Raises Weakness, and OSError where nobody listens."""
        try:
            told = await self.script(client, dice)
        except Ended as ended:
            told = ended.ending
        return (told,) if isinstance(told, Ending) else told


_attacks: Final[dict[str, Attack]] = {}

ATTACKS: Final[Mapping[str, Attack]] = _attacks
"""Every attack by its name."""


def _attack(*ends: int, needs_token: bool = False) -> Callable[[Script], Script]:
    def add(script: Script) -> Script:
        name = script.__name__
        _add(name, ends, script, needs_token)
        return script

    return add


def _add(name: str, ends: Iterable[int], script: Script, needs_token: bool = False) -> None:
    assert name not in _attacks, name
    _attacks[name] = Attack(name, frozenset(ends), script, needs_token)


# The door: heads of requests.

_JWT: Final = "eyJhbGciOiJI.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"

Heads = Callable[[HostileClient], Iterable[bytes]]


def _headers(*variants: dict[str, str | None], path: str | None = None) -> Heads:
    return lambda client: [client.request(path, **variant) for variant in variants]


def _edited(*edits: tuple[bytes, bytes]) -> Heads:
    """An honest head with something replaced."""
    return lambda client: [client.request().replace(old, new, 1) for old, new in edits]


def _paths(*paths: str) -> Heads:
    return lambda client: [client.request(path) for path in paths]


def _strange_origins(client: HostileClient) -> Iterator[bytes]:
    own = client.request().partition(b"Host: ")[2].partition(b"\r\n")[0].decode()
    tricks = ("null", "http://evil.example", f"http://{own}.evil.example", f"http://{own}@evil.example", "HTTPS://EVIL")
    for trick in (*tricks, f"file://{own}", f"http://evil.example/{own}", f"http://{own}:1", "http://localhost.evil"):
        yield client.request(Origin=trick)


_HEADS: Final[Mapping[str, tuple[Heads, set[int]]]] = {
    "another_protocol": (lambda _: [b"\x16\x03\x01\x02\x00\x01", b"\x00" * 64, b"\x05\x01\x00"], {400}),
    "old_http": (_edited((b"HTTP/1.1", b"HTTP/1.0"), (b"HTTP/1.1", b"HTTP/0.9")), {400}),
    "other_verbs": (_edited((b"GET", b"POST"), (b"GET", b"CONNECT"), (b"GET", b"get")), {400}),
    "no_host_or_two": (
        lambda client: [client.request(Host=None), client.request().replace(b"\r\nUpg", b"\r\nHost: x\r\nUpg")],
        {400},
    ),
    "rebound_host": (_headers({"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example"}), {403}),
    "strange_origins": (_strange_origins, {403}),
    "bad_keys": (
        _headers({"Sec_WebSocket_Key": None}, {"Sec_WebSocket_Key": "AAAA"}, {"Sec_WebSocket_Key": "*" * 24}),
        {400},
    ),
    "old_version": (_headers({"Sec_WebSocket_Version": "8"}, {"Sec_WebSocket_Version": None}), {426}),
    "no_upgrade": (_headers({"Upgrade": None}), {426}),
    "half_an_upgrade": (_headers({"Connection": "close"}, {"Upgrade": "h2c"}), {400}),
    "smuggled_body": (
        _headers({"Content_Length": "5"}, {"Transfer_Encoding": "chunked"}, {"Content_Length": "0, 5"}),
        {400},
    ),
    "broken_lines": (
        _edited(
            (b"Upgrade:", b"Upgrade :"),
            (b"\r\nUpgrade", b"\nUpgrade"),
            (b"websocket\r\n", b"websocket\r\n folded\r\n"),
            (b"websocket", b"web\0socket"),
            (b"GET ", b"\x1b[2J "),
        ),
        {400},
    ),
    "strange_subprotocols": (_headers({"Sec_WebSocket_Protocol": None}, {"Sec_WebSocket_Protocol": "soap"}), {400}),
    "strange_paths": (_paths("/", "/v1/ws/../ws", "//v1/ws", "/v1/ws/", "/v1/ws%00", "/etc/passwd"), {404}),
    "large_head": (_headers({"X_Filler": "x" * 17_000}), {431}),
    "many_headers": (lambda client: [client.request().replace(b"\r\n", b"\r\n" + b"a: b\r\n" * 4_000, 1)], {431}),
    "token_in_url": (_paths("/v1/ws?token=secret", f"/v1/ws?x={_JWT}", "/v1/ws?Access_Token=secret"), {401}),
    "token_in_subprotocol": (
        _headers(
            {"Sec_WebSocket_Protocol": "turnlane.v1, bearer.secret"},
            {"Sec_WebSocket_Protocol": f"turnlane.v1, {_JWT}"},
        ),
        {401},
    ),
    "a_second_request": (lambda client: [client.request() * 2], {1002}),
}

_BAD_TOKENS: Final = ("Bearer a.b.c", "Bearer ", "Basic YTpi", f"Bearer {_JWT}", "Bearer " + "a" * 5_000)


async def _served_after(client: HostileClient) -> Ending:
    """An honest client is served, if not at once: what was cut has to be noticed first."""
    ending = Ending(503)
    for _ in range(50):
        async with client.another() as one:
            try:
                ending = await (await one.hello()).serves()
            except Ended as ended:
                ending = ended.ending
        if ending.code != 503:
            break
        await trio.sleep(0.1)
    return ending


def _for_each_head(heads: Heads) -> Script:
    async def script(client: HostileClient, dice: random.Random) -> Sequence[Ending]:
        endings = []
        for head in heads(client):
            async with client.another() as one:
                await one.connect(head)
                endings.append(await one.ending())
        return endings

    return script


for _name, (_heads, _ends) in _HEADS.items():
    _add(_name, _ends, _for_each_head(_heads))
_add(
    "wrong_tokens",
    {401},
    _for_each_head(lambda client: [client.request(Authorization=bad) for bad in _BAD_TOKENS]),
    needs_token=True,
)


@_attack(401, needs_token=True)
async def mutated_token(client: HostileClient, dice: random.Random) -> Sequence[Ending]:
    """A good token with one character exchanged."""
    assert client.token is not None
    endings = []
    for _ in range(8):
        at = dice.randrange(len(client.token) - 8)  # the last characters hold unused bits
        other = "A" if client.token[at] != "A" else "B"
        async with client.another() as one:
            changed = f"{client.token[:at]}{other}{client.token[at + 1 :]}"
            await one.connect(one.request(Authorization=f"Bearer {changed}"))
            endings.append(await one.ending())
    return endings


@_attack(431)
async def endless_head(client: HostileClient, dice: random.Random) -> Ending:
    """A request whose head does not end."""
    await client.connect(client.request()[:-2])
    ended = await client.pour(itertools.repeat(b"X-Filler: " + b"x" * 500 + b"\r\n", 1_000))
    return ended or await client.ending()


@_attack(408)
async def half_open_handshake(client: HostileClient, dice: random.Random) -> Ending:
    """Half a head, then silence."""
    head = client.request()
    await client.connect(head[: dice.randrange(1, len(head) - 1)])
    return await client.ending()


@_attack(408)
async def dripped_handshake(client: HostileClient, dice: random.Random) -> Ending:
    """A head byte by byte, each in time, the whole never."""
    await client.connect(b"")
    drops = itertools.chain(client.request()[:-2], itertools.cycle(b"X-Filler: x\r\n"))
    ended = await client.pour((bytes((drop,)) for drop in drops), pace_s=0.02)
    assert ended is not None, "the drops are endless"
    return ended


@_attack(408, 503)
async def handshake_flood(client: HostileClient, dice: random.Random) -> Sequence[Ending]:
    """Many handshakes open at once: most have to be turned away while the first still wait."""
    endings: list[Ending] = []

    async def one(other: HostileClient) -> None:
        try:
            await other.connect(b"GET")
            endings.append(await other.ending())
        except Ended as ended:
            endings.append(ended.ending)

    async with trio.open_nursery() as nursery:
        for _ in range(300):
            nursery.start_soon(one, client.another())
    if client.token is not None and all(ending.code != 503 for ending in endings):
        raise Weakness("300 handshakes of one address stood open and none was turned away")
    return endings


@_attack(SERVED, 503, needs_token=True)
async def connection_flood(client: HostileClient, dice: random.Random) -> Sequence[Ending]:
    """More connections of one principal than it may have, each of them initialized."""
    endings: list[Ending] = []
    few = trio.CapacityLimiter(8)

    async def one(other: HostileClient) -> None:
        async with few:
            try:
                await other.hello()
                endings.append(await other.serves())
            except Ended as ended:
                endings.append(ended.ending)

    async with trio.open_nursery() as nursery:
        for _ in range(80):
            nursery.start_soon(one, client.another())
    if all(ending.code == SERVED for ending in endings):
        raise Weakness("80 connections of one principal stood open and none was turned away")
    return endings


@_attack(SERVED)
async def cut_handshakes(client: HostileClient, dice: random.Random) -> Ending:
    """Gone in the middle of a head, with and without a reset; then an honest request."""
    head = client.request()
    for _ in range(30):
        async with client.another() as one:
            await one.connect(head[: dice.randrange(len(head))])
            if dice.random() < 0.5:
                one.cut()
    return await _served_after(client)


# Between the upgrade and `initialize`.


@_attack(SERVED, 400)
async def too_early(client: HostileClient, dice: random.Random) -> Ending:
    """Everything in one write, frames before the upgrade was answered: read after it, or refused."""
    hello = client.call("initialize", protocol="turnlane.v1", client={"name": "x"})
    await client.connect(client.request() + frame_bytes(TEXT, hello) + frame_bytes(PONG) * 500)
    return await client.serves()


@_attack(4408)
async def silent_stranger(client: HostileClient, dice: random.Random) -> Ending:
    """An upgrade, then nothing."""
    await client.connect()
    return await client.ending()


@_attack(4408)
async def stranger_who_pings(client: HostileClient, dice: random.Random) -> Ending:
    """Frames all the time, but never `initialize`."""
    await client.connect()
    ended = await client.pour(itertools.repeat(frame_bytes(PING, b"x")), pace_s=0.3)
    assert ended is not None, "the pings are endless"
    return ended


@_attack(1009)
async def large_first_message(client: HostileClient, dice: random.Random) -> Ending:
    """More than a stranger may say at once."""
    await client.connect()
    await client.frame(TEXT, b" " * 8_193)
    return await client.ending()


@_attack(1009)
async def talkative_stranger(client: HostileClient, dice: random.Random) -> Ending:
    """More than a stranger may say in all, in small messages."""
    await client.connect()
    ended = await client.pour([frame_bytes(TEXT, b"[" + b" " * 2_000 + b"]")] * 20)
    return ended or await client.ending()


@_attack(1009, 4408, needs_token=True)
async def guessed_tokens(client: HostileClient, dice: random.Random) -> Ending:
    """`initialize` again and again with invented tokens."""
    await client.connect(client.request(Authorization=None))
    while True:
        guess = f"{_JWT}{dice.getrandbits(64):x}"
        answer = await client.ask("initialize", protocol="turnlane.v1", client={"name": "x"}, token=guess)
        if "error" not in answer:
            raise Weakness("an invented token was taken")


@_attack(SERVED)
async def before_initialize(client: HostileClient, dice: random.Random) -> Ending:
    """Requests before `initialize` are refused by name, and nothing else happens."""
    await client.connect()
    for method in ("session/list", "turn/start", "no/such", "auth/refresh"):
        if (await client.ask(method)).get("error", {}).get("data", {}).get("code") != "not_initialized":
            raise Weakness(f"{method} was not refused before initialize")
    await client.ask("initialize", protocol="turnlane.v1", client={"name": "x"})
    return await client.serves()


# Frames.


def _bomb() -> bytes:
    """A frame as permessage-deflate makes it: a thousand times larger inside."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(b" " * 8_000_000) + packer.flush(zlib.Z_SYNC_FLUSH)[:-4]


def _close(code: int, reason: bytes = b"") -> bytes:
    return frame_bytes(CLOSE, code.to_bytes(2) + reason)


_START: Final = frame_bytes(TEXT, b'{"jsonrpc":', fin=False)
_CALL: Final = b'{"jsonrpc":"2.0","id":"x","method":"session/list","params":{"limit":1}}'

_FRAMES: Final[Mapping[str, tuple[Sequence[bytes], set[int]]]] = {
    "unmasked": ([frame_bytes(TEXT, _CALL, masked=False), frame_bytes(PING, b"", masked=False)], {1002}),
    "reserved_bits": ([frame_bytes(TEXT, _CALL, rsv=bits) for bits in range(1, 8)], {1002}),
    "compressed_bomb": ([frame_bytes(TEXT, _bomb(), rsv=4)], {1002}),
    "reserved_opcodes": ([frame_bytes(opcode, b"x") for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)], {1002}),
    "cut_control_frames": ([frame_bytes(opcode, b"", fin=False) for opcode in (PING, PONG, CLOSE)], {1002}),
    "long_control_frames": ([frame_bytes(opcode, b"x" * 126) for opcode in (PING, PONG, CLOSE)], {1002}),
    "wasteful_lengths": (
        [b"\x81\xfe\x00\x05\0\0\0\0hello", b"\x81\xff" + (5).to_bytes(8) + b"\0\0\0\0hello"],
        {1002},
    ),
    "negative_length": ([b"\x81\xff\x80" + b"\0" * 11, b"\x81\xff" + b"\xff" * 8 + b"\0" * 4], {1002}),
    "declared_large": ([frame_bytes(TEXT, b"", declared_length=size) for size in (2**20 + 1, 2**32, 2**62)], {1009}),
    "continuation_of_nothing": ([frame_bytes(CONTINUATION, b"x")], {1002}),
    "interleaved_messages": (
        [_START + frame_bytes(TEXT, _CALL), _START + frame_bytes(PING) + frame_bytes(TEXT, b"")],
        {1002},
    ),
    "endless_fragments": ([_START + frame_bytes(CONTINUATION, b" ", fin=False) * 2_000], {1009, 4429}),
    "empty_fragments": ([_START + frame_bytes(CONTINUATION, fin=False) * 40], {1002}),
    "large_in_parts": ([_START + frame_bytes(CONTINUATION, b" " * 60_000, fin=False) * 20], {1009}),
    "binary": ([frame_bytes(BINARY, _CALL), frame_bytes(BINARY, b"\x81\xa7jsonrpc")], {1003}),
    "bad_utf8": (
        [
            frame_bytes(TEXT, b"\xff\xfe"),
            frame_bytes(TEXT, b"\xed\xa0\x80"),  # a surrogate
            frame_bytes(TEXT, b"\xc0\xaf"),  # a slash, too long
            frame_bytes(TEXT, b"\xf4\x90\x80\x80"),  # above the last code point
            frame_bytes(TEXT, b'"\xe2\x82'),  # cut short
        ],
        {1007},
    ),
    "bad_utf8_in_parts": (
        [
            frame_bytes(TEXT, b'"\xe2', fin=False) + frame_bytes(CONTINUATION, b"\x28"),
            frame_bytes(TEXT, b'"\xf0\x9f', fin=False) + frame_bytes(PING) + frame_bytes(CONTINUATION, b""),
        ],
        {1007},
    ),
    "close_of_one_byte": ([frame_bytes(CLOSE, b"\x03")], {1002}),
    "close_codes_of_nobody": ([_close(code) for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65_535)], {1002}),
    "close_reason_no_text": ([_close(1000, b"\xff\xff")], {1007}),
    "many_closes": ([_close(1000) * 50], {1000}),
    "talk_behind_close": ([_close(1000) + frame_bytes(TEXT, _CALL) * 20 + frame_bytes(9, b"x") * 5], {1000}),
    "ping_flood": ([frame_bytes(PING, b"x") * 100], {4429}),
}


def _for_each_frame(variants: Sequence[bytes]) -> Script:
    async def script(client: HostileClient, dice: random.Random) -> Sequence[Ending]:
        endings = []
        for data in variants:
            async with client.another() as one:
                await one.hello()
                endings.append(await one.pour([data]) or await one.ending())
        return endings

    return script


for _name, (_variants, _ends) in _FRAMES.items():
    _add(_name, _ends, _for_each_frame(_variants))


@_attack(1007)
async def bad_utf8_at_the_end(client: HostileClient, dice: random.Random) -> Ending:
    """A text that ends inside a character, its last fragment empty and in a write of its own."""
    await client.hello()
    await client.frame(TEXT, b'"\xf0\x9f', fin=False)
    await trio.sleep(0.02)
    await client.frame(CONTINUATION)
    return await client.ending()


@_attack(4429)
async def frame_flood(client: HostileClient, dice: random.Random) -> Ending:
    """Empty pongs, as fast as they can be written."""
    await client.hello()
    ended = await client.pour([frame_bytes(PONG) * 1_000] * (_FLOOD_FRAMES // 1_000))
    return ended or await client.ending()


@_attack(SERVED, 4429)
async def byte_flood(client: HostileClient, dice: random.Random) -> Ending:
    """Honest requests of half a megabyte of white space: stopped, or kept up with."""
    await client.hello()
    piece = frame_bytes(TEXT, _CALL[:-1] + b" " * 500_000 + b"}")
    return await client.pour([piece] * 40) or await client.serves()


@_attack(SERVED, 4429)
async def message_flood(client: HostileClient, dice: random.Random) -> Ending:
    """Honest requests as fast as they can be written, with the answers read: stopped, or kept up with."""
    await client.hello()
    calls = (frame_bytes(TEXT, client.call("session/list", limit=1)) for _ in range(4_000))
    return await client.pour(calls) or await client.serves()


@_attack(SERVED)
async def dripped_frame(client: HostileClient, dice: random.Random) -> Ending:
    """A sound request byte by byte: slow is not hostile."""
    await client.hello()
    frame = frame_bytes(TEXT, client.call("session/list", limit=1))
    ended = await client.pour((bytes((byte,)) for byte in frame), pace_s=min(0.01, client.hold_s / len(frame)))
    return ended or await client.serves()


@_attack(SERVED)
async def cut_frames(client: HostileClient, dice: random.Random) -> Ending:
    """Gone in the middle of a frame, with and without a reset; then an honest request."""
    frame = frame_bytes(TEXT, _CALL)
    for _ in range(10):
        async with client.another() as one:
            await one.hello()
            await one.send(frame[: dice.randrange(1, len(frame))])
            if dice.random() < 0.5:
                one.cut()
    return await _served_after(client)


@_attack(CUT, 1000, 1001, 1002)
async def half_closed_frame(client: HostileClient, dice: random.Random) -> Ending:
    """Half a frame, then the end of what is sent; the peer still listens."""
    await client.hello()
    await client.send(frame_bytes(TEXT, _CALL)[: dice.randrange(1, 60)])
    await client.send_eof()
    return await client.ending()


@_attack(1000)
async def closing_races(client: HostileClient, dice: random.Random) -> Sequence[Ending]:
    """Pings before, between and behind the close frame, cut into pieces at random."""
    endings = []
    for _ in range(10):
        pings = [frame_bytes(PING, bytes(dice.randrange(20))) for _ in range(12)]
        at = dice.randrange(len(pings))
        data = b"".join([*pings[:at], _close(1000), *pings[at:]])
        cuts = sorted(dice.sample(range(1, len(data)), dice.randrange(6)))
        async with client.another() as one:
            await one.hello()
            pieces = [data[start:end] for start, end in itertools.pairwise([0, *cuts, len(data)])]
            endings.append(await one.pour(pieces) or await one.ending())
    return endings


@_attack(4500)
async def pings_while_shown_out(client: HostileClient, dice: random.Random) -> Sequence[Ending]:
    """The server closes, for a hundred bad messages, and hears pings while it does."""
    endings = []
    for _ in range(5):
        async with client.another() as one:
            await one.hello()
            bad = frame_bytes(TEXT, b"?") * 110
            pings = [frame_bytes(PING, b"x")] * 15
            endings.append(await one.pour([bad + pings[0], *pings]) or await one.ending())
    return endings


@_attack(SERVED, CUT, 4002, 4429)
async def never_reads(client: HostileClient, dice: random.Random) -> Ending:
    """Asks as fast as it can and reads nothing; then it is gone, and an honest request is answered."""
    await client.hello()
    client.read_little()
    with trio.move_on_after(client.hold_s):
        while True:
            await client.send(b"".join(frame_bytes(TEXT, client.call("runtime/status")) for _ in range(100)))
    client.cut()
    return await _served_after(client)


# Messages: each has to be answered by an error of one of these numbers, and the connection lives on.


def _body(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "session/list", **members}).encode()


def _raw(member: str, value: bytes) -> bytes:
    return _body(**{member: "@"}).replace(b'"@"', value)


def _read(session: object) -> bytes:
    return _body(method="session/read", params={"session": session})


PARSE, INVALID, UNKNOWN, PARAMS, MISSING = -32700, -32600, -32601, -32602, -32002

_MESSAGES: Final[Mapping[str, tuple[Sequence[bytes], set[int]]]] = {
    "not_json": ([b"", b"hello", b"\xef\xbb\xbf{}", _body() + b"}", _body()[:-1], b"'a'", b'"\x01"'], {PARSE}),
    "deep_json": ([_raw("params", b"[" * n + b"]" * n) for n in (65, 100_000)] + [b'{"a":' * 50_000], {PARSE}),
    "duplicate_members": ([b'{"id":1,' + _body()[1:], b'{"\\u0069d":1,' + _body()[1:]], {PARSE}),
    "huge_numbers": (
        [_raw("id", digits) for digits in (b"9" * 65, b"9" * 900_000, b"1e999", b"-0." + b"0" * 70)],
        {PARSE},
    ),
    "no_numbers": ([_raw("id", word) for word in (b"NaN", b"Infinity", b"01", b"0x1", b"+1", b"1.")], {PARSE}),
    "many_members": ([_body(params={f"m{n}": n for n in range(2_000)})], {PARSE}),
    "many_values": ([b"[" + b"0," * 30_000 + b"0]", b"[" * 1 + b"[]," * 200_000 + b"[]]"], {PARSE}),
    "lone_surrogates": ([_raw("method", text) for text in (b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\ud83d"')], {PARSE}),
    "batches": ([b"[]", b"[" + _body() + b"]", b"[" + b",".join([_body()] * 100) + b"]"], {INVALID}),
    "no_requests": ([b"1", b"null", b'"x"', b"{}", _body(jsonrpc="1.0"), _body(method=1), _body(extra=1)], {INVALID}),
    "wild_ids": (
        [_raw("id", wild) for wild in (b"true", b"[1]", b"{}", b"1.0", b"1e2", b"9007199254740992")],
        {INVALID},
    ),
    "wild_params": ([_body(params=wild) for wild in ([1], "x", 5, True)], {INVALID}),
    "initialize_again": ([_body(method="initialize", params={})], {INVALID}),
    "unknown_methods": (
        [_body(method=name) for name in ("no/such", "", "__init__", "session/list\0", "x" * 100_000)],
        {UNKNOWN},
    ),
    "control_characters": (
        [_body(method="\x1b]0;owned\x07\x1b[2J\r\nroot"), _read("a\nb"), _body(params={"\x1b[31m": 1})],
        {UNKNOWN, PARAMS},
    ),
    "mistyped_members": ([_read(wild) for wild in (None, True, 5, "", "x" * 129, ["s"], {"$ne": 1})], {PARAMS}),
    "ids_as_paths": ([_read(path) for path in ("../../etc/passwd", "/dev/zero", "CON", "%2e%2e", "*")], {MISSING}),
}


def _for_each_message(messages: Sequence[bytes], numbers: set[int]) -> Script:
    async def script(client: HostileClient, dice: random.Random) -> Ending:
        await client.hello()
        for message in messages:
            await client.frame(TEXT, message)
            _refused(await client.message(), numbers)
        return await client.serves()

    return script


def _refused(answer: Mapping[str, Any], numbers: set[int]) -> None:
    """An error with one of these numbers, short, without a character that a terminal would obey."""
    error = answer.get("error")
    if error is None or error.get("code") not in numbers:
        raise Weakness(f"answered {json.dumps(answer)[:200]}, not by an error of {sorted(numbers)}")
    told = json.dumps(error, ensure_ascii=False)
    if len(told) > _ERROR_CHARS_MAX or any(not char.isprintable() for char in str(error["message"])):
        raise Weakness(f"the error repeats what it was given: {told[:200]!r}")


for _name, (_messages, _numbers) in _MESSAGES.items():
    _add(_name, {SERVED}, _for_each_message(_messages, _numbers))


@_attack(4500)
async def bad_messages_without_end(client: HostileClient, dice: random.Random) -> Ending:
    """Mistakes are answered; a hundred of them within a minute are no mistake."""
    await client.hello()
    ended = await client.pour([frame_bytes(TEXT, _body(method="no/such"))] * 150)
    return ended or await client.ending()


@_attack(SERVED)
async def answers_to_nothing(client: HostileClient, dice: random.Random) -> Ending:
    """Responses to requests that nobody made."""
    await client.hello()
    stray: list[dict[str, Any]] = [{"id": 1, "result": {}}, {"id": None, "error": {"code": 1, "message": "x"}}]
    await client.send(b"".join(frame_bytes(TEXT, json.dumps({"jsonrpc": "2.0", **one}).encode()) for one in stray * 50))
    return await client.serves()


@_attack(SERVED)
async def notifications_of_nobody(client: HostileClient, dice: random.Random) -> Ending:
    """Methods as notifications: no effect, and few words about it."""
    await client.hello()
    call = json.dumps({"jsonrpc": "2.0", "method": "session/close", "params": {"session": "x"}}).encode()
    await client.send(frame_bytes(TEXT, call) * 60)
    return await client.serves()


@_attack(SERVED)
async def request_flood(client: HostileClient, dice: random.Random) -> Ending:
    """Hundreds of requests in one write: each is answered once, if only by `overloaded`."""
    await client.hello()
    calls = [client.call("session/list", limit=1) for _ in range(300)]
    await client.send(b"".join(frame_bytes(TEXT, call) for call in calls))
    waited_for = {json.loads(call)["id"] for call in calls}
    while waited_for:
        answer = await client.message()
        if answer.get("id") not in waited_for:
            raise Weakness(f"an answer to request {answer.get('id')!r} came twice, or to none")
        waited_for.discard(answer["id"])
    return await client.serves()


async def _own_session(client: HostileClient, dice: random.Random) -> str:
    """A session that an attack may do with what it likes."""
    session = f"hostile-{dice.getrandbits(48):012x}"
    answer = await client.ask("session/open", session=session)
    if "error" in answer:
        raise Weakness(f"an honest session/open was refused: {answer['error'].get('data')}")
    return session


@_attack(SERVED)
async def attach_flood(client: HostileClient, dice: random.Random) -> Ending:
    """Attach again and again: each replaces the one before."""
    await client.hello()
    session = await _own_session(client, dice)
    for _ in range(100):
        answer = await client.ask("session/attach", session=session, replay_from={"type": "earliest"})
        if "error" in answer:
            raise Weakness(f"an honest session/attach was refused: {answer['error'].get('data')}")
    await client.ask("session/close", session=session)
    return await client.serves()


@_attack(SERVED)
async def forged_cursors(client: HostileClient, dice: random.Random) -> Ending:
    """Cursors that are garbage, changed in one character, or another session's."""
    await client.hello()
    ours, foreign = await _own_session(client, dice), await _own_session(client, dice)
    place = {"type": "now"}
    cursor = (await client.ask("session/attach", session=foreign, replay_from=place))["result"]["head_cursor"]
    forgeries = [(ours, cursor), (ours, "x"), (ours, "\0" * 40), (ours, "9" * 256)]
    for at in (len(cursor) - 1, *(dice.randrange(len(cursor)) for _ in range(4))):
        changed = "0" if cursor[at] != "0" else "1"
        forgeries.append((foreign, cursor[:at] + changed + cursor[at + 1 :]))
    for session, forged in forgeries:
        place = {"type": "cursor", "cursor": forged}
        if "error" not in await client.ask("session/attach", session=session, replay_from=place):
            raise Weakness("a cursor that was never given for this session was taken")
    for session in (ours, foreign):
        await client.ask("session/close", session=session)
    return await client.serves()
