"""Approval: the agent asks before it acts. The question is durable, and so is what was done.

The payment stands under a key in the effect ledger. A second turn that comes to the same payment gets the result of
the first call and makes none: `effect.run` is False.
"""

import tempfile

import trio

import turnlane

PAID: list[str] = []


async def clerk(turn: turnlane.Turn) -> None:
    invoice = turn.input["pay"]
    answer = await turn.ask(f"Pay invoice {invoice}?", deadline=60)
    if not answer.accepted:
        await turn.output(f"Invoice {invoice} stays open.")
        return
    async with turn.effect("pay", {"invoice": invoice}, key=f"pay-{invoice}") as effect:
        if effect.run:
            PAID.append(invoice)  # the call that must not happen twice
            effect.result = {"receipt": f"r-{invoice}"}
    await turn.output(f"Invoice {invoice} is paid, receipt {effect.result['receipt']}.")


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with turnlane.open_runtime(f"{folder}/state", agent=clerk) as runtime:
            session = await runtime.open_session("office")
            for invoice, decision in (("17", "accept"), ("18", "decline"), ("17", "accept")):
                async with session.attach("now") as events:
                    turn = await session.start_turn({"pay": invoice})
                    async for event in events:
                        if event.type == "request.opened":
                            print(f"asked: {event.data['prompt']}  answer: {decision}")
                            await session.answer(event.data["request"], decision)
                        elif event.type == "turn.output":
                            print(event.data["data"])
                        elif event.type == "turn.closed" and event.turn == turn.id:
                            break
            print(f"payments made: {PAID}")


trio.run(main)
