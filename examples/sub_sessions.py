"""Delegation: a turn opens two sessions below itself, lets both work at once, and joins what they found.

They live and die with the turn: cancel it, and both end with it, each with a terminal of its own. The turn cannot
complete while one of them is open.
"""

import tempfile

import trio

import turnlane


async def lead(turn: turnlane.Turn) -> None:
    found: dict[str, str] = {}

    async def delegate(topic: str) -> None:
        helper = await turn.sub_session(profile="helper")
        task = await helper.start_turn({"topic": topic})
        outcome = await task.outcome()
        events = (await helper.read()).events
        said = "".join(event.data["data"] for event in events if event.type == "turn.output")
        found[topic] = f"{said} ({outcome.outcome})"

    async with trio.open_nursery() as nursery:
        for topic in turn.input["topics"]:
            nursery.start_soon(delegate, topic)
    for topic in turn.input["topics"]:
        await turn.output(f"{topic}: {found[topic]}\n")


async def helper(turn: turnlane.Turn) -> None:
    for word in ("looked", "into", turn.input["topic"]):
        await turn.output(f"{word} ")
        await trio.sleep(0.01)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        agents = {"lead": lead, "helper": helper}
        async with turnlane.open_runtime(f"{folder}/state", agents=agents) as runtime:
            session = await runtime.open_session("research")
            turn = await session.start_turn({"topics": ["tides", "winds"]})
            outcome = await turn.outcome()
            for event in (await session.read()).events:
                if event.type == "turn.output":
                    print(event.data["data"], end="")
                elif event.type == "subsession.started":
                    print(f"(a sub-session began: {event.data['child'][:16]}..)")
            print(f"the turn {outcome.outcome}")


trio.run(main)
