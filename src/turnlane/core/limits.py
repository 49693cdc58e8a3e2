"""Every bound of the system, its unit in its name. Change one here, or it does not exist.

Defaults are those of the registry (docs/registry.md). `_max` is a bound, the others are settings. Relations between
them are asserted when a `Limits` is made, so a combination that cannot work never starts.
"""

from __future__ import annotations

from attrs import fields, frozen


@frozen
class Limits:
    """Times in ms, sizes in bytes, unless the name says otherwise."""

    # sessions
    session_drain_ms_max: int = 30_000
    host_drain_ms_max: int = 30_000
    session_idle_ms: int = 60_000
    resident_sessions_max: int = 10_000
    session_wake_ms_max: int = 2_000
    snapshot_lag_items: int = 1_024
    """A session or queue that grew by so many since its last snapshot gets one: what a wake-up folds stays short."""
    actor_restarts_max: int = 3
    restart_window_ms: int = 60_000
    # streams without an actor: runs, workers, queues
    stream_owners_max: int = 1_024
    stream_waiters_max: int = 64
    # the gate
    defer_base_ms: int = 250
    defer_ms_max: int = 10_000
    gate_events_per_s_max: int = 20
    merge_items_max: int = 32
    merge_bytes_max: int = 65_536
    turns_active_max: int = 1_024
    turns_waiting_max: int = 4_096
    # ends and cancels
    output_bytes_max: int = 1_048_576
    output_event_bytes_max: int = 49_152
    closed_turns_remembered_max: int = 64
    cancel_ask_ms: int = 75
    cancel_insist_ms: int = 175
    cancel_total_ms_max: int = 500
    soft_cancel_ms: int = 500
    soft_cancel_ms_max: int = 2_000
    tombstone_ms: int = 600_000
    tombstones_max: int = 256
    detach_grace_ms: int = 0
    turn_budget_ms_cap: int = 3_600_000
    # sub-sessions, requests, effects
    subsession_depth_max: int = 8
    subsessions_per_turn_max: int = 64
    requests_open_max: int = 16
    request_deadline_ms: int = 600_000
    request_deadline_ms_max: int = 604_800_000
    effects_open_max: int = 64
    # dispatch
    dispatches_open_max: int = 4_096
    dispatch_input_bytes_max: int = 1_048_576
    dispatch_metadata_bytes_max: int = 16_384
    dispatch_attempts: int = 3
    dispatch_attempts_max: int = 100
    dispatches_ended_max: int = 4_096
    """Ended rows of a queue that are remembered; the log has all."""
    target_chars_max: int = 256
    claim_lease_ms: int = 15_000
    claim_lease_ms_min: int = 1_000
    claim_lease_ms_max: int = 600_000
    worker_claims_max: int = 64
    claim_tries_max: int = 16
    """Sessions and queues that one claim of any of them asks."""
    dispatch_backoff_base_ms: int = 1_000
    dispatch_backoff_ms_max: int = 60_000
    binding_stale_ms: int = 180_000
    ingest_items_max: int = 256
    ingest_bytes_max: int = 1_048_576
    ingest_feeds_max: int = 64
    """Feeds of one turn: each is part of the session's state while the turn is open."""
    list_items: int = 100
    list_items_max: int = 200
    # the compatibility contract
    contract_command_bytes_max: int = 65_536
    contract_metadata_bytes_max: int = 16_384
    contract_reason_chars_max: int = 1_024
    contract_ids_max: int = 256
    contract_lock_ms_max: int = 5_000
    heartbeat_ms: int = 15_000
    contract_cursors_max: int = 1_024
    """Saved places that are remembered; the one that was saved longest ago goes first."""
    # workers and projections
    worker_heartbeat_stale_ms: int = 120_000
    worker_heartbeats_per_second_max: int = 10
    worker_heartbeats_burst_max: int = 20
    worker_recovery_grace_ms: int = 30_000
    worker_metadata_bytes_max: int = 65_536
    worker_id_chars_max: int = 200
    worker_reason_chars_max: int = 200
    worker_ref_chars_max: int = 1_024
    worker_events_kept_max: int = 10_000
    projection_page_items_max: int = 256
    projection_catchup_events_max: int = 2_000
    projection_catchup_ms_max: int = 200
    projection_retry_ms: int = 5_000
    projection_memory_items_max: int = 10_000
    projection_stall_ms_max: int = 30_000
    # runs
    run_events_max: int = 100_000
    run_end_reserve_items: int = 16
    """Further places of a full run, for start, cancel and finish alone: it can still end."""
    run_payload_bytes_max: int = 1_048_576
    run_metadata_bytes_max: int = 65_536
    event_type_chars_max: int = 128
    guest_scope_chars_max: int = 200
    run_create_key_retention_hours: int = 720
    """How long the key of a creation stands for its run."""
    # lanes and the window
    control_items_max: int = 64
    control_reserved_items: int = 8
    control_high_items: int = 48
    control_low_items: int = 24
    data_items_max: int = 256
    data_bytes_max: int = 4_194_304
    data_high_items: int = 192
    data_low_items: int = 96
    telemetry_items_max: int = 128
    telemetry_high_items: int = 96
    telemetry_low_items: int = 48
    data_inflight_max: int = 512
    data_runnable_max: int = 4
    """Tasks of turns made runnable in one pass, or events that they have to take or pass on."""
    readers_runnable_max: int = 16
    """Readers of kept events that are woken in one pass."""
    output_quantum_items: int = 16
    timers_max: int = 65_536
    wall_timer_look_ms: int = 60_000
    """How long a timer of the wall clock is left alone at most: that clock may be set."""
    # quotas of named tenants (off for `default`)
    tenant_turns_open_max: int = 32
    tenant_sessions_per_min_max: int = 120
    tenant_turns_per_min_max: int = 600
    session_turns_per_min_max: int = 60
    # the journal
    commit_batches_max: int = 256
    map_bytes_max: int = 68_719_476_736
    map_grow_percent: int = 70
    map_reserve_percent: int = 90
    reader_check_ms: int = 60_000
    verify_on_open_bytes_max: int = 1_073_741_824
    page_items_max: int = 1_000
    page_bytes_max: int = 4_194_304
    writer_stall_ms_max: int = 5_000
    keys_cached_max: int = 256
    tail_items_max: int = 256
    tail_bytes_max: int = 4_194_304
    # authority
    lease_ttl_ms: int = 5_000
    lease_ttl_ms_min: int = 1_000
    lease_ttl_ms_max: int = 60_000
    lease_margin_ms_min: int = 250
    """The holder falls silent so long before its lease runs out, or a tenth of it where that is more."""
    lease_retry_ms: int = 100
    authority_wait_ms_max: int = 7_000
    """An opening waits so long for the lease of a former owner to run out."""
    lose_grace_ms_max: int = 600_000
    migration_ms: int = 30_000
    """A session that is handed over lets its turn go on for so long, and its next owner has so long to come."""
    migration_ms_max: int = 600_000
    # the wire
    message_bytes_max: int = 1_048_576
    outgoing_message_bytes_max: int = 8_388_608
    frame_bytes_max: int = 65_536
    key_chars_max: int = 128
    initialize_ms_max: int = 5_000
    anonymous_message_bytes_max: int = 8_192
    anonymous_bytes_max: int = 20_480
    handshake_ms_max: int = 5_000
    handshake_bytes_max: int = 16_384
    handshakes_open_max: int = 256
    handshakes_per_address_max: int = 16
    connections_max: int = 10_000
    connections_per_address_max: int = 256
    connections_per_tenant_max: int = 2_048
    connections_per_principal_max: int = 64
    attachments_per_tenant_max: int = 8_192
    attachments_max: int = 256
    requests_in_flight_max: int = 64
    bad_messages_per_min_max: int = 100
    refused_notices_per_s_max: int = 10
    ping_interval_ms: int = 20_000
    silence_ms_max: int = 40_000
    write_stall_ms_max: int = 30_000
    close_ms_max: int = 2_000
    crashes_per_address_per_min_max: int = 10
    refuse_address_ms: int = 60_000
    mark_items: int = 256
    mark_ms: int = 10_000
    overtaken_items_max: int = 1_024
    # frames (people's tokens; services and local `auth = "off"` get the wider ones)
    fragments_max: int = 1_024
    empty_fragments_max: int = 16
    frames_per_s_max: int = 400
    messages_per_s_max: int = 200
    pings_per_s_max: int = 5
    pings_burst_max: int = 20
    bytes_per_s_max: int = 4_194_304
    service_frames_per_s_max: int = 20_000
    service_bytes_per_s_max: int = 41_943_040
    json_depth_max: int = 64
    json_members_max: int = 1_000
    json_values_max: int = 20_000
    json_digits_max: int = 64
    # tokens
    clock_leeway_s: int = 5
    token_life_s_max: int = 900
    service_token_life_s_max: int = 86_400
    token_bytes_max: int = 4_096
    secret_bytes_min: int = 32
    ticket_life_s_max: int = 30
    tickets_max: int = 4_096
    tickets_per_principal_max: int = 64
    # the operator's listener
    http_header_bytes_max: int = 16_384
    http_query_bytes_max: int = 4_096
    http_requests_max: int = 256
    http_idle_ms_max: int = 75_000
    http_drain_ms_max: int = 10_000
    http_body_bytes_max: int = 2_097_152
    http_send_ms_max: int = 30_000
    http_request_ms_max: int = 30_000
    http_threads_max: int = 4
    legacy_start_ms_max: int = 30_000
    legacy_stop_ms_max: int = 5_000
    followers_max: int = 1_024
    followers_per_principal_max: int = 16
    tail_ms_max: int = 3_600_000
    sse_keepalive_ms: int = 15_000
    status_items_max: int = 1_000
    status_bytes_max: int = 262_144
    # live delivery over HTTP
    live_window_items_max: int = 1_024
    tails_max: int = 1_024
    tails_bytes_max: int = 67_108_864
    topic_chars_max: int = 512
    poll_items: int = 100
    poll_items_max: int = 200
    outbound_items_max: int = 200
    poll_page_bytes_max: int = 1_048_576
    poll_min_interval_ms: int = 250
    consumers_max: int = 4_096
    consumer_idle_ms_max: int = 60_000
    lag_threshold_items: int = 300
    strikes_max: int = 3
    fair_slice_items: int = 50
    reconnect_base_ms: int = 400
    reconnect_jitter_ms: int = 250
    sse_page_bytes_max: int = 262_144
    sse_recheck_ms: int = 30_000
    """How often the rights of an open follower are judged again."""
    sse_goodbye_ms_max: int = 500
    """How long a follower whose rights have ended may take to hear so."""
    disconnect_causes_max: int = 32
    # sync tokens
    sync_clock_skew_s: int = 5
    sync_age_s_max: int = 300
    revocation_margin_s: int = 60
    """Beyond the longest life of a token: how long a revocation is remembered after nothing can need it."""
    revoked_ids_max: int = 1_000
    """In one request."""
    revocations_max: int = 65_536

    def __attrs_post_init__(self) -> None:
        for lane in ("control", "data", "telemetry"):
            low, high = getattr(self, f"{lane}_low_items"), getattr(self, f"{lane}_high_items")
            most = getattr(self, f"{lane}_items_max")
            assert 0 <= low < high <= most, (lane, low, high, most)
        assert self.cancel_ask_ms + self.cancel_insist_ms < self.cancel_total_ms_max
        assert 0 < self.control_reserved_items < self.control_items_max
        assert self.frame_bytes_max < self.message_bytes_max
        assert self.output_event_bytes_max < self.frame_bytes_max
        assert 64 <= self.data_inflight_max <= 4_096
        assert self.soft_cancel_ms <= self.soft_cancel_ms_max
        assert self.defer_base_ms <= self.defer_ms_max
        assert self.worker_heartbeat_stale_ms >= 1
        assert 0 < self.claim_lease_ms_min <= self.claim_lease_ms <= self.claim_lease_ms_max
        assert 0 < self.dispatch_attempts <= self.dispatch_attempts_max
        assert self.strikes_max >= 2
        assert self.live_window_items_max >= 1
        assert self.sse_page_bytes_max <= self.poll_page_bytes_max
        assert self.lease_ttl_ms_min <= self.lease_ttl_ms <= self.lease_ttl_ms_max
        assert 0 < self.migration_ms <= self.migration_ms_max
        assert self.lease_margin_ms_min * 2 < self.lease_ttl_ms_min
        assert 0 < self.lease_retry_ms < self.lease_ttl_ms_min // 6
        assert 0 < self.map_grow_percent < self.map_reserve_percent < 100
        for bound in fields(Limits):
            assert getattr(self, bound.name) >= 0, bound.name


DEFAULT_LIMITS = Limits()
