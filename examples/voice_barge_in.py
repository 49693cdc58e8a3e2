"""Barge-in: the agent speaks, the person speaks into it, the old turn is cut at a number and the new one runs.

`overlap="interrupt"` does cancel and start in one step. What the loudspeaker still has of the first turn above its
`fence_seq` may be thrown away: nothing above it is ever delivered.
"""

import tempfile

import trio

import turnlane

SPEECH = "Of course. Let me read you the whole contract, beginning with the definitions, from paragraph one."


async def speaker(turn: turnlane.Turn) -> None:
    text = SPEECH if turn.input["said"] == "read it to me" else "Stopped. What would you like?"
    for word in text.split():
        await turn.output(word)
        await trio.sleep(0.03)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with turnlane.open_runtime(f"{folder}/state", agent=speaker) as runtime:
            session = await runtime.open_session("call-1")
            async with session.attach("earliest") as events:
                first = await session.start_turn({"said": "read it to me"})
                second = None
                async for event in events:
                    if isinstance(event, turnlane.Skipped):
                        print(f"(never delivered: {event.count} words that were spoken too late)")
                    elif event.type == "turn.output":
                        print("speaker:", event.data["data"])
                        if event.turn == first.id and event.data["data"] == "read":
                            print("person: stop!")
                            second = await session.start_turn({"said": "stop"}, overlap="interrupt")
                    elif event.type == "turn.aborted":
                        print(f"-- {event.data['reason']}: the fence is at seq {event.data['fence_seq']}")
                    elif event.type == "turn.closed" and second is not None and event.turn == second.id:
                        break
            outcome = await first.outcome()
            log = (await session.read()).events
            said = [event.seq for event in log if event.type == "turn.output" and event.turn == first.id]
            late = sum(seq > outcome.fence_seq for seq in said)
            print(f"first turn: {outcome.outcome}, {len(said)} words, {late} of them after its fence")


trio.run(main)
