// A worker in another language: it takes deliveries of the contract over HTTP, does them, and says so.
//
//     turnlane serve --state state/ --operator-auth off                in one terminal
//     node examples/worker.mjs http://127.0.0.1:4100 shed              in another
//     turnlane contract exec --url http://127.0.0.1:4100 \
//       '{"command":"QueueDispatch","request_id":"r-1","target":"shed","metadata":{"say":"water the plants"}}'
//
// Any number of them may share a target: `MarkNotified` is the claim, and all but the first are told `invalid_transition`.
// The list of events says what is left to do, so a worker that was killed finds its work again: what it had claimed and not
// delivered is done once more. Each command has a key, so that repeating a call that was cut off is safe.
// docs/contract.md has the commands, docs/workers.md what registering is for. TOKEN is an operator token, if one is needed.

import { setTimeout as sleep } from 'node:timers/promises'

const [url, target, name = target] = process.argv.slice(2)
if (!target) {
  console.error('usage: node worker.mjs URL TARGET [NAME]    such as http://127.0.0.1:4100 shed w-1')
  process.exit(2)
}
const headers = { 'content-type': 'application/json' }
if (process.env.TOKEN) headers.authorization = `Bearer ${process.env.TOKEN}`

/** One request, made again while the daemon is away or asks for patience: `{status, body}`, or the last word on it. */
async function call(method, path, body, key) {
  for (;;) {
    try {
      const answer = await fetch(`${url}/internal/v1${path}`, {
        method, headers: key ? { ...headers, 'idempotency-key': key } : headers, body: body && JSON.stringify(body),
      })
      const found = await answer.json()
      if (answer.status !== 429 && answer.status !== 503) return { status: answer.status, body: found }
    } catch (error) {
      if (!(error instanceof TypeError)) throw error // fetch's own word for a connection that is not there
    }
    await sleep(200)
  }
}

/** A command of the contract by this worker: null if somebody else was first, or it is over already. */
async function command(what, id, members = {}) {
  const { status, body } = await call('POST', '/contract/commands', { command: what, request_id: id, ...members }, `${name}:${what}:${id}`)
  if (status === 200) return body
  if (body.reason_code === 'invalid_transition' || body.reason_code === 'unknown_dispatch') return null
  throw new Error(`${body.reason_code}: ${body.message}`)
}

async function perform(id, metadata) {
  if ((await command('MarkNotified', id, { channel: name })) === null) return
  try {
    console.log(`${name} does ${id}`)
    if (metadata?.fail) throw new Error(metadata.fail)
    await sleep((metadata?.seconds ?? 0.5) * 1000)
  } catch (error) {
    await command('MarkFailed', id, { reason: error.message })
    console.log(`${name} failed at ${id}: ${error.message}`)
    return
  }
  const done = await command('MarkDelivered', id)
  console.log(done === null ? `${name} was too late with ${id}` : `${name} did ${id}`)
}

/** What is left to do, by the events so far: deliveries to this target that wait, or that this worker has claimed. */
function take(left, event) {
  if (event.event === 'DispatchQueued' && event.target === target) left.set(event.request_id, event.metadata)
  if (event.event === 'DispatchNotified' && event.channel !== name) left.delete(event.request_id)
  if (event.event === 'DispatchDelivered' || event.event === 'DispatchFailed') left.delete(event.request_id)
}

const me = { owner_guest_scope: 'examples' }
const registered = await call('POST', '/workers', { ...me, worker_id: name })
if (registered.status !== 201) throw new Error(`${registered.body.reason_code}: ${registered.body.message}`)
setInterval(() => call('POST', `/workers/${encodeURIComponent(name)}/heartbeat`, me), 10_000)

const left = new Map()
let cursor = ''
for (;;) {
  const { status, body } = await call('GET', `/contract/events?limit=100${cursor && `&after=${cursor}`}`)
  if (body.reason_code === 'stale_cursor') {
    left.clear() // a compaction took events that were not seen here: what is left is found from the beginning
    cursor = ''
    continue
  }
  if (status !== 200) throw new Error(`${body.reason_code}: ${body.message}`)
  for (const envelope of body.events) take(left, envelope.body)
  cursor = body.next_cursor
  if (!body.replay_complete) continue
  for (const [id, metadata] of left) {
    left.delete(id)
    await perform(id, metadata)
  }
  await sleep(200)
}
