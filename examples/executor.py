"""An executor elsewhere: it claims turns of a session, runs them, and tells what it says; the daemon keeps the books.

    turnlane serve --state state/ --auth off                    in one terminal
    python examples/executor.py ws://127.0.0.1:4101 talk w-1    in another (a third word: its lease in ms)
    python examples/executor.py ws://127.0.0.1:4101 talk --say "hello from elsewhere"

Whoever follows the session sees the words as those of any turn. Kill the executor in between: its lease runs out, the
turn is abandoned, and the next one, of whatever name, begins it anew. Cut its connection: what was not acknowledged
is sent again and kept once. Cancel the turn: nothing of it is kept any more, and the executor hears so.
"""

import sys
from contextlib import suppress

import trio

from turnlane.client import Client, Refused, Session, connect


async def work(client: Client, session: Session, name: str, lease_ms: int) -> None:
    while True:
        wish = {"session": session.id, "owner": name, "lease_ms": lease_ms}
        claim = (await client.ask("dispatch/claim", wish))["claim"]
        if claim is None:
            await trio.sleep(0.2)
            continue
        held = {"session": session.id, "dispatch": claim["dispatch"], "claim_token": claim["claim_token"]}
        give_back, why = "dispatch/release", dict[str, object]()
        try:
            async with trio.open_nursery() as nursery:
                if not (await client.ask("dispatch/start", {**held, "lease_ms": lease_ms})).get("started"):
                    continue
                give_back, why = "dispatch/fail", {"reason": "executor_refused", "retry": True}
                print(f"{name} runs {claim['turn']}", flush=True)
                nursery.start_soon(hold, client, held, lease_ms)
                phase = await run(session, name, claim)
                print(f"{name} ended {claim['turn']}: {phase}", flush=True)
                nursery.cancel_scope.cancel()
        except* Refused as refused:
            print(f"{name} lost {claim['turn']}: {refused.exceptions[0]}", flush=True)
            with suppress(Refused):  # of a claim that is lost there is nothing to give back
                await client.ask(give_back, {**held, **why})
            await trio.sleep(0.2)


async def hold(client: Client, held: dict[str, str], lease_ms: int) -> None:
    """Renew at each third of the lease, for as long as the turn runs."""
    while True:
        await trio.sleep(lease_ms / 3_000)
        await client.ask("dispatch/renew", {**held, "lease_ms": lease_ms})


async def run(session: Session, name: str, claim: dict[str, str]) -> str:
    turn, place = claim["turn"], 0
    async with session.ingesting(name, claim["dispatch"], claim["claim_token"]) as box:
        for word in claim["input"].split():
            record = {"event_id": f"{turn}/{place}", "turn": turn, "kind": "item/text/delta", "payload": f"{word} "}
            end = place + len(word) + 1
            await box.put({"type": "output", **record, "cursor_start": place, "cursor_end": end})
            place = end
            await trio.sleep(0.05)
            if box.answer is not None and box.answer.phase != "started":
                return box.answer.phase  # somebody ended the turn: nothing of it is kept any more
        done = {"event_id": f"{turn}/end", "turn": turn, "kind": "turn/completed", "payload": {"status": "completed"}}
        await box.put({"type": "lifecycle", **done})
        await box.flush()
        assert box.answer is not None
        return box.answer.phase


async def main(url: str, session: str, *words: str) -> None:
    async with connect(url) as client:
        await client.ask("session/open", {"session": session, "dispatch_mode": "host"})
        if words[0] == "--say":
            key = client.new_key()
            row = await client.ask("dispatch/enqueue", {"session": session, "input": words[1], "key": key})
            print("waits as", row["turn"], flush=True)
            return
        await work(client, client.session(session), words[0], int(words[1]) if len(words) > 1 else 15_000)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
