"""The smallest embedding: one agent, one session, one turn, read from the beginning."""

import trio

import turnlane


async def agent(turn: turnlane.Turn) -> None:
    for word in turn.input["text"].split():
        await turn.output(word + " ")


async def main() -> None:
    async with turnlane.open_runtime("state/", agent=agent) as runtime:
        session = await runtime.open_session("s-1")
        turn = await session.start_turn({"text": "hello there"})
        async with session.attach(replay_from="earliest") as events:
            async for event in events:
                print(event.seq, event.type, event.data)
                if event.type == "turn.closed":
                    break
        print(await turn.outcome())


trio.run(main)
