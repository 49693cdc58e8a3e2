"""A worker elsewhere: it claims deliveries of a queue over the websocket, does them, and says so.

    turnlane serve --state state/ --auth off           in one terminal
    python examples/worker.py ws://127.0.0.1:4101 w-1  in another
    python examples/worker.py ws://127.0.0.1:4101 --enqueue "water the plants"

What is claimed is renewed while it is being done, and only what was *started* here is done. Kill the worker in between:
its lease runs out and the work goes to the next one, under a higher generation; a late word of the dead one is refused.
`python examples/worker.py URL --explain` says why something waits.
"""

import sys

import trio

from turnlane.client import Client, Refused, connect

LEASE_MS = 3_000


async def work(client: Client, name: str) -> None:
    await client.ask("worker/register", {"worker_id": name, "owner_guest_scope": "examples", "idempotency_key": name})
    while True:
        answer = await client.ask("dispatch/claim", {"owner": name, "lease_ms": LEASE_MS})
        claim = answer["claim"]
        if claim is None:
            await trio.sleep(0.2)
            continue
        held = {"dispatch": claim["dispatch"], "claim_token": claim["claim_token"]}
        try:
            begun = await client.ask("dispatch/start", {**held, "lease_ms": LEASE_MS})
            if not begun["started"]:
                continue
            async with trio.open_nursery() as nursery:
                nursery.start_soon(renew, client, held)
                print(f"{name} does {claim['input']['say']} (generation {claim['generation']})", flush=True)
                await trio.sleep(claim["input"].get("seconds", 0.5))
                nursery.cancel_scope.cancel()
            await client.ask("dispatch/complete", held)
            print(f"{name} did {claim['input']['say']}", flush=True)
        except Refused as no:  # somebody else has it by now
            print(f"{name} lost {claim['input']['say']}: {no.reason.value}", flush=True)


async def renew(client: Client, held: dict[str, str]) -> None:
    while True:
        await trio.sleep(LEASE_MS / 3_000)
        await client.ask("dispatch/renew", {**held, "lease_ms": LEASE_MS})


async def main(url: str, what: str, *rest: str) -> None:
    async with connect(url, client_name="worker") as client:
        match what:
            case "--enqueue":
                text = " ".join(rest)
                print((await client.ask("dispatch/enqueue", {"input": {"say": text}, "key": text}))["phase"])
            case "--explain":
                explained = (await client.ask("dispatch/explain", {}))["explained"]
                print("nothing waits" if explained is None else explained["stuck"] or "nothing is wrong")
            case name:
                await work(client, name)


if __name__ == "__main__":
    try:
        trio.run(main, *sys.argv[1:])
    except* KeyboardInterrupt:
        pass
