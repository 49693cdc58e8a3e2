"""A client of a running daemon: a turn, a barge-in, and a place to come back to.

    turnlane serve --state state/ --auth off      in one terminal
    python examples/client.py ws://127.0.0.1:4101

With `--auth off` (on loopback only) no token is asked for; else give one as the second word (`turnlane token --help`).

Cut the connection while it runs (or restart the daemon): it goes on where it was, with nothing lost or repeated.
"""

import sys

import trio

from turnlane.client import Event, Events, Recovered, Skipped, connect


async def main(url: str, token: str | None = None) -> None:
    async with connect(url, token, client_name="example") as client:
        session = await client.open_session("example")
        async with session.attach("now") as events:
            turn = await session.start_turn({"text": "repeat 5 hello"})
            await show(events)
            print(await turn.outcome())

            turn = await session.start_turn({"text": "count to 1000"})
            with trio.move_on_after(1):
                await show(events)
            answer = await turn.cancel("barge_in")
            await show(events)
            print(f"cancelled: nothing above seq {answer.fence_seq} is ever seen of {turn.id}")
            await events.ack()  # the place is kept on the server, under "example": attach("saved") goes on there


async def show(events: Events) -> None:
    """Print what comes until the turn has ended."""
    async for item in events:
        match item:
            case Event(type="turn.output", data=data):
                print(data["data"], end="", flush=True)
            case Event(type="turn.closed"):
                print()
                return
            case Skipped(count=count, reason=reason):
                print(f"\n[{count} skipped: {reason}]")
            case Recovered(away_s=away_s):
                print(f"\n[connected again after {away_s:.1f} s]")


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:3])
