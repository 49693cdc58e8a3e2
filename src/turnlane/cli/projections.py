"""`turnlane projections`: read models of a state directory, rebuilt, compared with the log, or thrown away."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Final, TextIO

import cyclopts
from attrs import define
from cyclopts import Parameter

from .frame import NO, OK, Json, No, Tenant, app, print_json, safe
from .reaching import read_only
from .state import StateDir

if TYPE_CHECKING:
    from ..core.ids import StreamName
    from ..journal import LmdbStore
    from ..runtime.follower import Follower

projections_app = cyclopts.App(
    name="projections",
    help="Read models: rebuild them, compare them with the log, throw them away.",
    usage="Usage: turnlane projections rebuild|verify|drop STATE [OPTIONS]",
)
app.command(projections_app)

Topic = Annotated[str | None, Parameter(help="one topic alone, such as run:ID:events or worker:ID:lifecycle")]

_BAR_CHARS: Final = 30
_LOOK_S: Final = {True: 0.1, False: 1.0}
"""On a terminal the bar moves; elsewhere there is a line a second at most, and none for what is soon done."""


@define
class Progress:
    """How far a long work is, on stderr."""

    total: int
    out: TextIO | None
    now: Callable[[], float] = monotonic
    _begun: float | None = None
    _shown: float = 0.0

    def show(self, done: int) -> None:
        if self.out is None or not self.total:
            return
        now = self.now()
        if self._begun is None:
            self._begun = self._shown = now
        terminal = self.out.isatty()
        if now - self._shown < _LOOK_S[terminal]:
            return
        self._shown = now
        part = min(1.0, done / self.total)
        rate = round(done / (now - self._begun))
        if terminal:
            bar = "#" * round(part * _BAR_CHARS)
            self.out.write(f"\r[{bar:-<{_BAR_CHARS}}] {part:4.0%}  {rate:,}/s ")
        else:
            self.out.write(f"turnlane: {part:.0%}, {rate:,}/s\n")
        self.out.flush()

    def end(self) -> None:
        if self.out is not None and self.out.isatty():
            self.out.write("\r\x1b[K")
            self.out.flush()


def _progress(total: int, json: bool) -> Progress:
    return Progress(total, None if json else sys.stderr)


@projections_app.command(usage="Usage: turnlane projections rebuild STATE [--topic TOPIC] [--tenant TENANT] [--json]")
def rebuild(state: StateDir, /, *, topic: Topic = None, tenant: Tenant = "default", json: Json = False) -> int:
    """Fold read models anew from the log. The daemon has to be stopped. Exit 1 when the log of one is damaged."""
    import trio

    from ..journal import LmdbStore

    with LmdbStore.open(_journal(state), create=False) as store:
        if topic is not None:
            return trio.run(_rebuild_one, store, topic, _stream(topic, tenant), json)
        return trio.run(_rebuild_all, store, state, json)


async def _rebuild_one(store: LmdbStore, topic: str, stream: StreamName, json: bool) -> int:
    done = await _follower(store).rebuild(stream)
    if json:
        said = {"changed": done.changed, "before": done.before, "after": done.after}
        print_json({"topic": topic, **said, "folded_events": done.folded_events})
    else:
        what = f"changed from {done.before} to {done.after}" if done.changed else f"unchanged, {done.after}"
        print(safe(f"{topic}: {what}; {done.folded_events} events"))
    return OK


async def _rebuild_all(store: LmdbStore, state: Path, json: bool) -> int:
    from ..core.ids import StreamName
    from ..core.reasons import Reason, Refused
    from ..journal.projections import followed

    follower, streams = _follower(store), list(followed(store))
    progress, left = _progress(len(streams), json), list[dict[str, str]]()
    try:
        for done, stream in enumerate(streams, 1):
            try:
                await follower.rebuild(stream)
            except Refused as refused:
                if refused.reason is not Reason.NOT_FOUND:  # pruned: it leaves no record
                    said = {"reason": refused.reason.value, "message": refused.message}
                    left.append({**_called(StreamName(stream)), **said})
            progress.show(done)
        await follower.recover()  # what has no stream any more, and the place in the log
    finally:
        progress.end()
    status = follower.status()
    if json:
        print_json({"path": str(state), "topics": status.topics, "held": status.topics_held, "left": left})
        return NO if left else OK
    for one in left:
        print(safe(f"{_spelled(one)}: left as it was: {one['reason']}: {one['message']}"))
    more = f"; {len(left)} left as they were (turnlane doctor)" if left else ""
    print(safe(f"{state}: {status.topics} topics{more}"))
    return NO if left else OK


@projections_app.command(usage="Usage: turnlane projections verify STATE [--json]")
def verify(state: StateDir, /, *, json: Json = False) -> int:
    """Fold the whole log beside the stored records and compare. Reads only. Exit 1 lists the topics that differ."""
    from ..codec import Codec
    from ..core.ids import StreamName
    from ..journal import Fit, LmdbProjections
    from ..journal import verify as compared
    from ..journal.projections import followed

    counts = dict.fromkeys(Fit, 0)
    wrong: list[dict[str, str]] = []
    with read_only(state) as store:
        progress = _progress(sum(1 for _ in followed(store)), json)
        for stream, fit in compared(LmdbProjections(store), store, Codec().decode):
            counts[fit] += 1
            if fit is Fit.WRONG:
                wrong.append(_called(StreamName(stream)))
            progress.show(sum(counts.values()))
        progress.end()
    total = sum(counts.values())
    if json:
        said = {"path": str(state), "topics": total, "behind": counts[Fit.BEHIND], "differ": wrong}
        print_json({"sound": not wrong, **said})
        return NO if wrong else OK
    for one in wrong:
        print(safe(_spelled(one)))
    behind = f", {counts[Fit.BEHIND]} of them behind until the next start" if counts[Fit.BEHIND] else ""
    verdict = f"{len(wrong)} of {total} topics differ" if wrong else f"sound, {total} topics{behind}"
    print(safe(f"{state}: {verdict}"))
    return NO if wrong else OK


@projections_app.command(usage="Usage: turnlane projections drop STATE [--json]")
def drop(state: StateDir, /, *, json: Json = False) -> int:
    """Throw all read models away; the next start folds them anew. The daemon has to be stopped."""
    from ..journal import LmdbProjections, LmdbStore

    with LmdbStore.open(_journal(state), create=False) as store:
        LmdbProjections(store).drop()
    print_json({"path": str(state)}) if json else print(safe(f"{state}: read models are folded anew at the next start"))
    return OK


def _journal(state: Path) -> Path:
    from ..embed import journal_of

    return journal_of(state)


def _stream(topic: str, tenant: str) -> StreamName:
    from ..core.ids import Tenant as TenantName
    from ..machines.projection import stream_of

    stream = stream_of(topic.strip(), TenantName(tenant))
    if stream is None:
        raise No(NO, "not_found", "there is no such topic: expected run:ID:events or worker:ID:lifecycle")
    return stream


def _called(stream: StreamName) -> dict[str, str]:
    from ..core.ids import split_stream
    from ..machines.projection import topic_of

    return {"tenant": split_stream(stream)[0], "topic": topic_of(stream)}


def _spelled(called: dict[str, str]) -> str:
    from ..core.ids import DEFAULT_TENANT

    return called["topic"] + ("" if called["tenant"] == DEFAULT_TENANT else f" (tenant {called['tenant']})")


def _follower(store: LmdbStore) -> Follower:
    from ..codec import Codec
    from ..core.limits import DEFAULT_LIMITS
    from ..embed import SystemClock
    from ..journal import LmdbProjections
    from ..runtime.follower import Follower

    def look_away(_: object) -> None:
        return

    clock, limits = SystemClock(), DEFAULT_LIMITS
    return Follower(store, LmdbProjections(store), Codec().decode, clock, _here, _here, limits, look_away)


async def _here(function: Callable[..., Any], /, *args: object) -> Any:
    """The port `Hop` of a command that has nothing else to do."""
    import trio

    await trio.lowlevel.checkpoint()
    return function(*args)
