"""`turnlane token mint` and `turnlane token inspect`."""

from __future__ import annotations

import json as jsons
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ..core.ids import DEFAULT_TENANT
from ..core.reasons import Reason
from .frame import NO, OK, UNREACHABLE, USAGE, Json, No, Tenant, print_json, safe, token_app

if TYPE_CHECKING:
    from ..daemon.tokens import KeyRing

Keys = Annotated[Path | None, Parameter(help="the daemon's key file (its setting `keys`)")]
OfState = Annotated[Path | None, Parameter(help="state directory of a loopback daemon that made its own key")]


@token_app.command(
    usage="Usage: turnlane token mint (--keys FILE | --state DIR | --operator | --sync) [--role ROLE | --scope SCOPE] "
    "[OPTIONS]"
)
def mint(
    *,
    keys: Keys = None,
    state: OfState = None,
    operator: Annotated[bool, Parameter(negative="", help="a token for the operator API")] = False,
    subject: Annotated[str, Parameter(help="who it speaks for (with --operator: its name)")] = "me",
    role: Annotated[Literal["observer", "talker", "worker", "operator"] | None, Parameter(help="usual rights")] = None,
    scope: Annotated[str | None, Parameter(help="rights, such as `sessions.read turns.start`")] = None,
    session: Annotated[
        str | None, Parameter(help="only this session, or a prefix with `*` (with --sync: its id)")
    ] = None,
    tenant: Tenant = DEFAULT_TENANT,
    life: Annotated[int | None, Parameter(help="seconds until it expires")] = None,
    sync: Annotated[
        bool, Parameter(negative="", help="a token for live delivery, of the first of `sync.keys`")
    ] = False,
    config: Annotated[Path | None, Parameter(help="with --sync: settings in TOML")] = None,
    user: Annotated[int | None, Parameter(help="with --sync: the user whose runs and workers it may follow")] = None,
    org: Annotated[
        str | None, Parameter(help="with --sync: organisation, a guest scope where no user is given")
    ] = None,
    device: Annotated[str | None, Parameter(help="with --sync: device")] = None,
    topic: Annotated[tuple[str, ...], Parameter(negative="", help="with --sync: only these topics")] = (),
    json: Json = False,
) -> int:
    """Make a token and print it. Of an operator token the settings keep only the hash, which is printed as well."""
    if sync:
        if keys or state or operator or role:
            raise No(USAGE, "usage", "--sync takes its key from the settings (--config) and its rights from --scope")
        ids = {"user": user, "org": org, "device": device, "session": session}
        return _mint_sync(config, subject, scope, topic, life, ids, json)
    from ..daemon.access import ROLES, scope_of

    if role is not None and scope is not None:
        raise No(USAGE, "usage", "--role and --scope exclude each other")
    if scope is not None and session is not None:
        raise No(USAGE, "usage", "--session narrows a --role; write targets into --scope instead")
    named = role or ("operator" if operator else "talker")
    if operator:
        scopes = tuple(scope.split()) if scope is not None else ROLES[named]
        return _mint_operator(subject, scopes, life, json)
    import time

    from ..embed import SystemIds

    try:
        rights = scope if scope is not None else scope_of(named, session)
        made = _key_ring(keys, state).mint(
            subject, rights, now_s=int(time.time()), jti=SystemIds().new("token"), life_s=life, tenant=tenant
        )
    except ValueError as error:
        raise No(USAGE, "usage", str(error)) from None
    text = made.reveal().decode()
    print_json({"token": text, "scope": rights}) if json else print(text)
    return OK


def _mint_sync(
    config: Path | None,
    subject: str,
    scope: str | None,
    topics: tuple[str, ...],
    life: int | None,
    ids: dict[str, Any],
    json: bool,
) -> int:
    import time

    from ..daemon.sync_tokens import SyncTokens
    from ..embed import SystemIds
    from ..machines.live import SCOPES
    from .serving import read_settings_or_say

    settings = read_settings_or_say(config, {})
    tokens = SyncTokens(
        settings.sync.keys, issuer=settings.sync.issuer, audience=settings.sync.audience, limits=settings.limits
    )
    scopes = sorted(frozenset().union(*SCOPES.values())) if scope is None else scope.split()
    try:
        made = tokens.mint(
            subject,
            now_s=int(time.time()),
            jti=SystemIds().new("token"),
            life_s=life,
            scopes=scopes,
            topics=topics,
            **ids,
        )
    except ValueError as error:
        raise No(USAGE, "usage", str(error)) from None
    text = made.reveal().decode()
    print_json({"token": text, "scopes": scopes, "topics": topics}) if json else print(text)
    return OK


def _mint_operator(name: str, scopes: tuple[str, ...], life: int | None, json: bool) -> int:
    import time

    from ..daemon.tokens import mint_operator

    expires = None if life is None else int(time.time()) + life
    secret, kept = mint_operator(name, scopes, expires_at=expires)
    text = secret.reveal().decode()
    if json:
        print_json({"token": text, "name": name, "sha256": kept.sha256, "scopes": scopes, "expires_at": expires})
        return OK
    print(f"{text}\n\n# for the settings:\n[[operator.tokens]]")
    print(f"name = {jsons.dumps(name)}\nsha256 = {jsons.dumps(kept.sha256)}")
    print(f"scopes = {jsons.dumps(scopes)}" + ("" if expires is None else f"\nexpires_at = {expires}"))
    return OK


@token_app.command(usage="Usage: turnlane token inspect TOKEN|- [--keys FILE | --state DIR] [--json]")
def inspect(
    token: Annotated[str, Parameter(help="the token, or - to read it from stdin", allow_leading_hyphen=True)],
    /,
    *,
    keys: Keys = None,
    state: OfState = None,
    json: Json = False,
) -> int:
    """Show what a token says and whether it would be accepted. Without keys its signature cannot be judged: exit 1."""
    import time

    from ..core.secret import Secret
    from ..daemon.tokens import KeyRing

    text = sys.stdin.buffer.readline().decode(errors="replace").strip() if token == "-" else token
    ring = _key_ring(keys, state) if keys or state else KeyRing()
    found = ring.inspect(Secret(text), int(time.time()))
    if not keys and not state:
        found |= {"reason": "not_verified", "detail": "no keys were given (--keys or --state)"}
    if json:
        print_json(found)
    else:
        for name, value in found.items():
            print(safe(f"{name}: {value if isinstance(value, str) else jsons.dumps(value, ensure_ascii=False)}"))
    return OK if found["valid"] else NO


def _key_ring(keys: Path | None, state: Path | None) -> KeyRing:
    from ..core.limits import DEFAULT_LIMITS
    from ..daemon.keys import LOCAL_KEY_FILE, load_keys, local_key
    from ..daemon.tokens import KeyRing

    if (keys is None) == (state is None):
        raise No(USAGE, "usage", "give --keys FILE or --state DIR, one of them")
    if keys is not None:
        found, problems = load_keys(keys, os.environ, DEFAULT_LIMITS)
        if problems:
            raise No(USAGE, "keys", "; ".join(problems))
        return KeyRing(found)
    assert state is not None
    if not (state / LOCAL_KEY_FILE).is_file():
        message = f"{state} holds no {LOCAL_KEY_FILE}: a daemon on loopback without keys makes it at its first start"
        raise No(UNREACHABLE, Reason.STATE_NOT_FOUND.value, message)
    try:
        return KeyRing([local_key(state)])
    except ValueError as error:
        raise No(UNREACHABLE, "not_private", str(error)) from None
