"""Tickets: good once, for a moment, for who asked for them, and only as long as their token is."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
import trio
from attrs import define, evolve
from event_streams import follow
from joserfc.jwk import OctKey
from operator_house import API, Answer, House, house, told_a_story

from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.reasons import Reason, Refused
from turnlane.core.secret import Secret
from turnlane.core.write_mode import WriteMode
from turnlane.daemon.access import Denied, Principal, PrincipalKind
from turnlane.daemon.keys import Key
from turnlane.daemon.tickets import Tickets
from turnlane.daemon.tokens import KeyRing, OperatorTokens
from turnlane.observe import AccessDenied

STREAM = f"{API}/sessions/s-1/stream"
INVALID = 401, "unauthorized", "ticket_invalid"
RING = KeyRing([Key("k1", "HS256", OctKey.import_key(b"s" * 32), mint=True)])
PAGE = "https://app.example"


# the book, alone


@define
class Clock:
    ns: int = 5

    def now(self) -> Any:
        return self.ns

    def wall(self) -> Any:
        return 1_800_000_000_000_000 + self.ns // 1_000


def principal(name: str = "ann", expires_at: int | None = None) -> Principal:
    return Principal(name, "default", PrincipalKind.OPERATOR, expires_at=expires_at)  # type: ignore[arg-type]


def shown(book: Tickets, ticket: str, origin: str | None = None) -> Secret | Denied:
    nobody = Denied(Reason.MISSING_AUTHORIZATION)
    return book.exchanged(nobody, [ticket], [origin], lambda _: principal())


def test_every_course_of_asking_showing_and_waiting_is_that_of_a_list_of_places() -> None:
    """All courses of five steps, against a model that is a list: token, origin, end."""
    half_s = DEFAULT_LIMITS.ticket_life_s_max // 2
    for course in itertools.product(("page", "tool", "first", "last", "foreign", "wait"), repeat=5):
        book, now, live = Tickets(DEFAULT_LIMITS, clock := Clock()), 0, list[tuple[str, Any, int]]()
        for number, step in enumerate(course):
            if step in ("page", "tool"):
                ticket, _ = book.issue(Secret(f"token {number}"), principal(), PAGE if step == "page" else None)
                live.append((ticket, (Secret(f"token {number}"), PAGE if step == "page" else None), now))
            elif step == "wait":
                now += half_s
                clock.ns += half_s * 1_000_000_000
            elif live:
                ticket, (token, origin), begun = live.pop(-1 if step == "last" else 0)
                good = now < begun + 2 * half_s and step != "foreign"
                found = shown(book, ticket, "https://other.example" if step == "foreign" else origin)
                assert found == token if good else isinstance(found, Denied) and found.reason is Reason.TICKET_INVALID
                assert isinstance(shown(book, ticket, origin), Denied), course  # spent, however it was shown


def test_a_ticket_lives_for_its_time_and_not_a_nanosecond_longer() -> None:
    for late in (0, 1):
        book = Tickets(DEFAULT_LIMITS, clock := Clock())
        ticket, ends = book.issue(Secret("t"), principal(), None)
        assert ends == clock.wall() + DEFAULT_LIMITS.ticket_life_s_max * 1_000_000
        clock.ns += DEFAULT_LIMITS.ticket_life_s_max * 1_000_000_000 - 1 + late
        assert isinstance(shown(book, ticket), Denied) == bool(late)


def test_a_ticket_says_no_later_end_than_its_token_has() -> None:
    _, ends = Tickets(DEFAULT_LIMITS, Clock()).issue(Secret("t"), principal(expires_at=1_800_000_010), None)

    assert ends == 1_800_000_010_000_000


def test_a_ticket_has_128_bits_and_the_book_holds_none() -> None:
    book = Tickets(DEFAULT_LIMITS, Clock())
    tickets = [book.issue(Secret("t"), principal(str(number)), None)[0] for number in range(100)]

    assert len(set(tickets)) == 100 and {len(one) for one in tickets} == {22}
    assert not any(one in repr((book, book._live)) for one in tickets)


@pytest.mark.parametrize(
    ("asked", "shows", "same"),
    [
        (None, None, True),
        ("", None, True),
        (" ", "", True),
        (PAGE, PAGE, True),
        (PAGE, "https://APP.example/", True),
        (PAGE, None, False),
        (None, PAGE, False),
        (PAGE, "http://app.example", False),
        (PAGE, "https://app.example:444", False),
        (PAGE, "https://app.example.evil", False),
        (PAGE, "null", False),
    ],
)
def test_a_ticket_is_good_for_the_origin_that_asked(asked: str | None, shows: str | None, same: bool) -> None:
    book = Tickets(DEFAULT_LIMITS, Clock())
    ticket, _ = book.issue(Secret("t"), principal(), asked)

    assert isinstance(shown(book, ticket, shows), Secret) == same


def test_unused_tickets_are_bounded_for_one_and_for_all_and_room_comes_back() -> None:
    limits = Limits(tickets_max=3, tickets_per_principal_max=2)
    book = Tickets(limits, clock := Clock())

    def issue(name: str) -> str:
        return book.issue(Secret("t"), principal(name), None)[0]

    first, _ = issue("ann"), issue("ann")
    with pytest.raises(Refused, match="2 tickets of yours"):
        issue("ann")
    issue("bob")
    with pytest.raises(Refused) as full:
        issue("cid")
    assert full.value.reason is Reason.OVERLOADED and len(book) == 3
    assert isinstance(shown(book, first), Secret)
    issue("ann")
    clock.ns += limits.ticket_life_s_max * 1_000_000_000
    issue("cid")
    assert len(book) == 1 and list(book._counts) == [("default", "cid")]


# over HTTP


async def ticket_of(made: House, token: str = "", **more: str) -> str:
    answer = await made.post(f"{API}/tickets", b"", token=token, **more)
    assert answer.status == 200, answer.body
    assert set(answer.json) == {"ticket", "expires_at"} and answer.headers["cache-control"] == "no-store"
    return str(answer.json["ticket"])


async def streamed(made: House, ticket: str, token: str | None = None, **more: str) -> Answer:
    return await made.get(f"{STREAM}?tail_ms=1&ticket={ticket}", token=token, **more)


def session_token(scope: str = "sessions.read") -> str:
    return RING.mint("page", scope, now_s=int(time.time()), jti="j").reveal().decode()


async def test_a_ticket_opens_one_stream_and_then_nothing() -> None:
    async with house() as made:
        await told_a_story(made)
        ticket = await ticket_of(made)
        async with follow(made, f"{STREAM}?after_seq=0&tail_ms=300&ticket={ticket}", token=None) as reader:
            assert (await reader.until("caught_up"))[-1].data["next_seq"] > 0
            again, unknown = await streamed(made, ticket), await streamed(made, "nobody")
            assert again.told == INVALID and again.body == unknown.body
            assert again.headers["www-authenticate"] == "Bearer"
            assert (await reader.until("closed"))[-1].data["reason_code"] == "tail_elapsed"


async def test_of_many_who_show_one_ticket_at_once_one_gets_in() -> None:
    async with house() as made:
        await told_a_story(made)
        ticket, statuses = await ticket_of(made), list[int]()

        async def show() -> None:
            statuses.append((await streamed(made, ticket)).status)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(show)
        assert sorted(statuses) == [200, *[401] * 7]


async def test_the_ticket_of_a_session_token_is_not_good_at_a_stream() -> None:
    async with house() as made:
        await told_a_story(made)
        made.api.keys = RING
        assert (await streamed(made, await ticket_of(made, session_token()))).told == INVALID
        assert (await made.get(f"{API}/sessions", token=session_token())).told[2] == "invalid_token"


async def test_a_ticket_has_the_rights_of_its_token_and_no_more() -> None:
    async with house() as made:
        await told_a_story(made)
        for scope, status in (("status.read", 403), ("sessions.read:other", 404), ("sessions.read:s-*", 200)):
            assert (await streamed(made, await ticket_of(made, made.token(scope)))).status == status


async def test_a_ticket_dies_with_its_token() -> None:
    async with house() as made:
        await told_a_story(made)
        tokens = made.api.tokens._tokens
        for left in ([], [evolve(one, expires_at=1) for one in tokens]):
            ticket = await ticket_of(made)
            made.api.tokens = OperatorTokens(left)
            assert (await streamed(made, ticket)).told == INVALID
            made.api.tokens = OperatorTokens(tokens)


async def test_a_stream_by_ticket_ends_when_its_token_is_taken_away() -> None:
    async with house() as made:
        await told_a_story(made)
        async with follow(made, f"{STREAM}?ticket={await ticket_of(made)}", token=None) as reader:
            await reader.until("caught_up")
            made.api.tokens = OperatorTokens()
            assert (await reader.until("closed"))[-1].data["reason_code"] == "invalid_token"


async def test_a_ticket_is_for_the_page_that_asked() -> None:
    async with house(allowed_origins=(PAGE, "https://other.example")) as made:
        await told_a_story(made)
        for origin, status in ((PAGE, 200), ("https://other.example", 401), ("", 401)):
            answer = await streamed(made, await ticket_of(made, Origin=PAGE), Origin=origin)
            assert answer.status == status and (status == 200 or answer.told == INVALID)


@pytest.mark.parametrize("others", [(), (PAGE,)])
async def test_a_page_reads_from_its_own_address_without_saying_its_origin(others: tuple[str, ...]) -> None:
    """Browsers leave it out there, and say so. The listener's own pages need no entry in the list."""
    async with house(allowed_origins=others) as made:
        await told_a_story(made)
        host = str(made.address)
        for own, said, status in (
            (f"http://{host}", "same-origin", 200),
            (f"http://{host}", "", 401),
            (f"http://{host}", "same-site", 401),
            (f"http://{host}", "cross-site", 401),
            (f"http://localhost:{made.address.port}", "same-origin", 401),
        ):
            ticket = await ticket_of(made, Origin=own, Host=host)
            assert (await streamed(made, ticket, Host=host, Sec_Fetch_Site=said)).status == status
        ticket = await ticket_of(made)  # of no page
        assert (await streamed(made, ticket, Host=host, Sec_Fetch_Site="same-origin")).told == INVALID


async def test_two_different_credentials_are_refused_and_one_shown_twice_is_one() -> None:
    async with house() as made:
        await told_a_story(made)
        one, mine = await ticket_of(made), await ticket_of(made)
        both = (400, "invalid_request", "invalid_request")
        assert (await streamed(made, one, token=made.token("sessions.read"))).told == both
        assert (await streamed(made, f"{mine}&ticket=other")).told == both
        assert (await streamed(made, mine, token="")).status == 200
        assert (await streamed(made, await ticket_of(made), token=None, Authorization="Basic x")).told[2] == (
            "invalid_authorization_scheme"
        )


async def test_a_ticket_is_good_in_no_other_url() -> None:
    async with house() as made:
        await told_a_story(made)
        ticket = await ticket_of(made)
        for path in (f"{API}/sessions/s-1", f"{API}/sessions", f"{API}/contract/stream", "/metrics"):
            answer = await made.get(f"{path}?ticket={ticket}", token=None)
            assert answer.told == (401, "unauthorized", "missing_authorization")
        assert (await streamed(made, ticket)).status == 200


@pytest.mark.parametrize("mode", WriteMode)
async def test_tickets_are_given_in_every_write_mode_and_change_nothing(mode: WriteMode) -> None:
    async with house(write_mode=mode) as made:
        before = repr(sorted(made.store._streams.items()))
        await ticket_of(made)
        assert repr(sorted(made.store._streams.items())) == before


async def test_only_who_has_a_valid_token_gets_a_ticket() -> None:
    async with house() as made:
        made.api.keys = RING
        old = RING.mint("page", "", now_s=int(time.time()) - 5_000, jti="j").reveal().decode()
        head, claims, _ = session_token().split(".")
        for token, reason in (
            (None, "missing_authorization"),
            ("x", "invalid_token"),
            (old, "token_expired"),
            (f"{head}.{claims}.AAAA", "invalid_token"),
            (made.token("sessions.read", expires_at=1), "token_expired"),
        ):
            answer = await made.post(f"{API}/tickets", b"", token=token)
            assert answer.told == (401, "unauthorized", reason)
        assert len(made.api.tickets) == 0
        made.api.keys = None
        assert (await made.post(f"{API}/tickets", b"", token=session_token())).told[2] == "invalid_token"


async def test_who_holds_too_many_unused_tickets_is_told_when_to_ask_again() -> None:
    async with house(limits=Limits(tickets_per_principal_max=1)) as made:
        await ticket_of(made)
        answer = await made.post(f"{API}/tickets", b"")
        assert answer.told == (503, "overloaded", "overloaded") and answer.headers["retry-after"] == "1"


async def test_without_authentication_a_ticket_is_given_and_none_is_asked_for() -> None:
    async with house(auth=False) as made:
        await told_a_story(made)
        made.api.keys = RING
        for token in (None, "x", session_token()):
            await ticket_of(made, token)  # type: ignore[arg-type]
        assert (await streamed(made, "anything")).status == 200


async def test_a_ticket_is_in_no_status_metric_or_observation() -> None:
    async with house() as made:
        await told_a_story(made)
        used, kept = await ticket_of(made), await ticket_of(made)
        await streamed(made, used)
        await streamed(made, used)
        pages = [(await made.get(path)).body.decode() for path in (f"{API}/status", "/metrics", "/readyz")]
        told = "".join(pages) + repr(made.seen.values) + repr(made.api.tickets)
        assert made.seen.of(AccessDenied)[-1].reason is Reason.TICKET_INVALID
        assert used not in told and kept not in told


# pages of other origins


async def test_a_page_on_the_list_may_ask_and_read_and_no_other() -> None:
    async with house(allowed_origins=(PAGE,)) as made:
        ours = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
        asked = await made.get(f"{API}/tickets", method="OPTIONS", token=None, **ours)
        assert asked.status == 204 and asked.headers["access-control-allow-origin"] == PAGE
        assert "authorization" in asked.headers["access-control-allow-headers"]
        answer = await made.post(f"{API}/tickets", b"", Origin=PAGE)
        assert answer.headers["access-control-allow-origin"] == PAGE and answer.headers["vary"] == "origin"
        refused = await made.post(f"{API}/tickets", b"", token="x", Origin=PAGE)
        assert refused.headers["access-control-allow-origin"] == PAGE  # else the page could not read why
        for origin in ("https://evil.example", "null", f"{PAGE}.evil", ""):
            theirs = {**ours, "Origin": origin}
            asked = await made.get(f"{API}/tickets", method="OPTIONS", token=None, **theirs)
            answer = await made.post(f"{API}/tickets", b"", Origin=origin)
            assert asked.status == 405 and not [one for one in asked.headers if one.startswith("access-control")]
            assert answer.status == (403 if origin else 200)
            assert not [one for one in answer.headers if one.startswith("access-control")]
