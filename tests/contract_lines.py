"""The example lines of docs/contract.md: commands in an order in which each is accepted, with the event of each."""

from __future__ import annotations

from typing import Final

LINES: Final = (
    (
        '{"command":"AcquireAuthority","owner":"w1","lease_id":"l1","leased_until":"2026-03-19T02:00:00Z"}',
        '{"event":"AuthorityAcquired","owner":"w1","lease_id":"l1","leased_until":"2026-03-19T02:00:00Z"}',
    ),
    (
        '{"command":"RenewAuthority","owner":"w1","lease_id":"l2","leased_until":"2026-03-19T03:00:00Z"}',
        '{"event":"AuthorityRenewed","owner":"w1","lease_id":"l2","leased_until":"2026-03-19T03:00:00Z"}',
    ),
    (
        '{"command":"QueueDispatch","request_id":"req-1","target":"worker-2"}',
        '{"event":"DispatchQueued","request_id":"req-1","target":"worker-2"}',
    ),
    (
        '{"command":"MarkNotified","request_id":"req-1","channel":"tmux"}',
        '{"event":"DispatchNotified","request_id":"req-1","channel":"tmux"}',
    ),
    (
        '{"command":"MarkDelivered","request_id":"req-1"}',
        '{"event":"DispatchDelivered","request_id":"req-1"}',
    ),
    (
        '{"command":"QueueDispatch","request_id":"req-2","target":"","metadata":{"b":[1,2.5,null],"a":"\\u00e9"}}',
        '{"event":"DispatchQueued","request_id":"req-2","target":"","metadata":{"b":[1,2.5,null],"a":"é"}}',
    ),
    (
        '{"command":"MarkFailed","request_id":"req-2","reason":"timeout"}',
        '{"event":"DispatchFailed","request_id":"req-2","reason":"timeout"}',
    ),
    ('{"command":"RequestReplay","cursor":"cursor-1"}', '{"event":"ReplayRequested","cursor":"cursor-1"}'),
    ('{"command":"RequestReplay","cursor":null}', '{"event":"ReplayRequested","cursor":null}'),
    ('{"command":"RequestReplay"}', '{"event":"ReplayRequested","cursor":null}'),
    ('{"command":"CaptureSnapshot"}', '{"event":"SnapshotCaptured"}'),
    (
        '{"command":"RemoveDispatchRecords","request_ids":["req-2","req-1"]}',
        '{"event":"DispatchRecordsRemoved","request_ids":["req-1","req-2"]}',
    ),
    (
        '{"command":"QueueDispatch","request_id":"req-3","target":"t","metadata":null}',
        '{"event":"DispatchQueued","request_id":"req-3","target":"t","metadata":null}',
    ),
)
SIGNALS: Final = (
    '{"event":"run.heartbeat","owner":"leader","phase":"execute"}',
    '{"event":"run.blocked_on_user","owner":"leader","reason":"needs-user-clarification"}',
    '{"event":"run.blocked_on_system","owner":"leader","reason":"sandbox-denied"}',
    '{"event":"worker.assigned","worker":"worker-2","task_id":"17"}',
    '{"event":"worker.stalled","worker":"worker-2","reason":"stdout-stale"}',
    '{"event":"worker.recovered","worker":"worker-2","recovery":"relaunch"}',
)
