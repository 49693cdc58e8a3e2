"""Files with secrets: the key file of a daemon, and the key and the tokens that a loopback daemon makes for itself.

A file with a secret belongs to its user and is readable by nobody else; one that is not so is not used, and the fault
names it. What we write ourselves is written beside and renamed, with that mode from its first byte. A key prints
without its material.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attrs import frozen
from joserfc.errors import JoseError
from joserfc.jwk import OctKey, OKPKey
from joserfc.util import urlsafe_b64encode

from ..core.ids import printable
from ..core.limits import DEFAULT_LIMITS, Limits
from ..core.secret import Secret

ALGORITHMS: Final = ("Ed25519", "EdDSA", "HS256")
LOCAL_KEY_FILE: Final = "local.key"
LOCAL_SUBJECT: Final = "local"


@frozen(repr=False)
class Key:
    kid: str
    alg: str
    material: OKPKey | OctKey
    not_before: int | None = None
    not_after: int | None = None
    tenants: tuple[str, ...] | None = None
    audiences: tuple[str, ...] | None = None
    service: bool = False
    mint: bool = False

    def __repr__(self) -> str:
        return f"Key(kid={self.kid!r}, alg={self.alg!r})"

    def life_s_max(self, limits: Limits) -> int:
        return limits.service_token_life_s_max if self.service else limits.token_life_s_max


# The key file.

_KEY_MEMBERS: Final = frozenset(
    ["kid", "alg", "key", "key_file", "key_env", "not_before", "not_after", "tenants", "audiences", "service", "mint"]
)


def load_keys(path: Path, environ: Mapping[str, str], limits: Limits) -> tuple[list[Key], list[str]]:
    """The keys of a `keys.toml`, and every problem of the file. A key with a problem is not among the keys."""
    fault = private_file_fault(path)
    if fault is not None:
        return [], [fault]
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as bad:
        return [], [f"{path} is not TOML: {bad}"]
    problems = [f"{path}: unknown key {name!r}; only [[keys]] stand here" for name in found if name != "keys"]
    keys: list[Key] = []
    tables = found.get("keys", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        return [], [*problems, f"{path}: keys has to be a list of tables [[keys]]"]
    for number, table in enumerate(tables, 1):
        try:
            keys.append(read_key(table, path.parent, environ, limits))
        except ValueError as bad:
            problems.append(f"{path}: key {number}: {bad}")
    kids = [key.kid for key in keys]
    problems += [f"{path}: kid {kid!r} stands twice" for kid in sorted({kid for kid in kids if kids.count(kid) > 1})]
    if sum(key.mint for key in keys) > 1:
        problems.append(f"{path}: mint = true on more than one key")
    return keys, problems


def read_key(table: Mapping[str, Any], folder: Path, environ: Mapping[str, str], limits: Limits) -> Key:
    unknown = sorted(set(table) - _KEY_MEMBERS)
    if unknown:
        raise ValueError(f"unknown member {unknown[0]!r}; known are {', '.join(sorted(_KEY_MEMBERS))}")
    kid, alg = table.get("kid"), table.get("alg")
    if not printable(kid):
        raise ValueError("kid has to be 1 to 128 printable characters")
    if alg not in ALGORITHMS:
        raise ValueError(f"alg has to be one of {', '.join(ALGORITHMS)}")
    for name, kind in (("not_before", int), ("not_after", int), ("service", bool), ("mint", bool)):
        if name in table and type(table[name]) is not kind:
            raise ValueError(f"{name} has to be {'whole seconds since 1970' if kind is int else 'true or false'}")
    for name in ("tenants", "audiences"):
        value = table.get(name)
        if value is not None and not (isinstance(value, list) and value and all(isinstance(one, str) for one in value)):
            raise ValueError(f"{name} has to be a list of texts")
    assert isinstance(kid, str) and isinstance(alg, str)
    material = key_material(alg, secret_text(table, "key", folder, environ), limits)
    if table.get("mint", False) and isinstance(material, OKPKey) and not material.is_private:
        raise ValueError("a public key cannot mint")
    return Key(
        kid=kid,
        alg=alg,
        material=material,
        not_before=table.get("not_before"),
        not_after=table.get("not_after"),
        tenants=tuple(table["tenants"]) if "tenants" in table else None,
        audiences=tuple(table["audiences"]) if "audiences" in table else None,
        service=table.get("service", False),
        mint=table.get("mint", False),
    )


def secret_text(table: Mapping[str, Any], name: str, folder: Path | None, environ: Mapping[str, str]) -> Secret:
    """What `name`, `<name>_file` or `<name>_env` of a table gives; exactly one of them has to be there."""
    known = (name, f"{name}_file", f"{name}_env")
    sources = [one for one in known if one in table]
    if len(sources) != 1 or not isinstance(table[sources[0]], str):
        raise ValueError(f"exactly one of {', '.join(known)} has to be given, as text")
    source, value = sources[0], table[sources[0]]
    if source == name:
        return Secret(value)
    if source == f"{name}_env":
        if not environ.get(value):
            raise ValueError(f"the variable {value} is not set")
        return Secret(environ[value])
    path = Path(value) if folder is None else folder / value
    fault = private_file_fault(path)
    if fault is not None:
        raise ValueError(fault)
    return Secret(path.read_bytes().strip())


def key_material(alg: str, text: Secret, limits: Limits) -> OKPKey | OctKey:
    """A key from its text: HS256 is the secret itself; Ed25519 is PEM or a JWK (private, or public to verify only)."""
    raw = text.reveal()
    if alg == "HS256":
        if len(raw) < limits.secret_bytes_min:
            raise ValueError(f"the secret has {len(raw)} bytes; HS256 needs {limits.secret_bytes_min} or more")
        if raw.startswith(b"-----BEGIN "):
            raise ValueError("the secret is a key of another kind")
        return OctKey.import_key({"kty": "oct", "k": urlsafe_b64encode(raw).decode()})
    try:
        key = OKPKey.import_key(json.loads(raw) if raw.lstrip().startswith(b"{") else raw)
    except (ValueError, TypeError, KeyError, JoseError):
        raise ValueError("the key is neither PEM nor a JWK of Ed25519") from None
    if key.curve_name != "Ed25519":
        raise ValueError("the curve of the key is not Ed25519")
    return key


def private_file_fault(path: Path) -> str | None:
    """Why a file with secrets may not be used: missing, a link, not a file, of another user, readable by others."""
    try:
        found = path.lstat()
    except OSError:
        return f"{path} does not exist or cannot be read"
    if not stat.S_ISREG(found.st_mode):
        return f"{path} is not a plain file"
    if found.st_uid not in (os.getuid(), 0):
        return f"{path} belongs to another user"
    if found.st_mode & 0o077:
        return f"{path} may be read by others; run `chmod 600 {path}`"
    return None


# What a loopback daemon makes for itself, so that the tools of the same user work without settings.


def local_key(state: Path, kid: str = "local", *, kept: bool = True) -> Key:
    """The key of this state directory, made at its first use (0600). Call it once the store stands: a directory that
    holds a stranger's file is not one in which a store is created. One that is not `kept` lives in this process."""
    path = state / LOCAL_KEY_FILE
    if path.exists() or kept:
        if not path.exists():
            _write_private(path, _fresh_key())
        if (fault := private_file_fault(path)) is not None:
            raise ValueError(fault)
        text = path.read_bytes()
    else:
        text = _fresh_key()
    material = key_material("Ed25519", Secret(text), DEFAULT_LIMITS)
    return Key(kid, "Ed25519", material, service=True, mint=True)


def _fresh_key() -> bytes:
    return json.dumps(OKPKey.generate_key("Ed25519").as_dict(private=True)).encode()


@frozen(repr=False)
class LocalTokens:
    """What the command-line tools of the same user find by themselves."""

    listen: str
    operator_listen: str
    session_token: Secret
    operator_token: Secret
    expires_at: int

    def __repr__(self) -> str:
        return f"LocalTokens(listen={self.listen!r}, operator_listen={self.operator_listen!r})"


def runtime_folder(environ: Mapping[str, str]) -> Path:
    """Where the token files of this user stand: private to the user, gone after a restart of the machine."""
    base = environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "turnlane" if base else Path("/tmp") / f"turnlane-{os.getuid()}"


def write_local_tokens(tokens: LocalTokens, environ: Mapping[str, str]) -> Path:
    """Write (or replace) the token file of a daemon. Raises ValueError when the folder is not ours alone."""
    folder = runtime_folder(environ)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ValueError(f"{folder} is not a directory of this user alone (0700)")
    path = folder / _file_name(tokens.listen)
    body = {
        "listen": tokens.listen,
        "operator_listen": tokens.operator_listen,
        "session_token": tokens.session_token.reveal().decode(),
        "operator_token": tokens.operator_token.reveal().decode(),
        "expires_at": tokens.expires_at,
    }
    _write_private(path, json.dumps(body).encode())
    return path


def find_local_tokens(address: str, environ: Mapping[str, str]) -> LocalTokens | None:
    """The tokens of the daemon whose websocket or operator listener is `host:port`; None when there are none to use."""
    folder = runtime_folder(environ)
    try:
        found = folder.lstat()
        names = sorted(folder.glob("daemon-*.json"))
    except OSError:
        return None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        return None
    port = address.rpartition(":")[2]
    for path in names:
        if private_file_fault(path) is not None:
            continue
        try:
            body = json.loads(path.read_bytes())
            listens = body["listen"], body["operator_listen"]
            if port not in [one.rpartition(":")[2] for one in listens]:
                continue
            tokens = Secret(body["session_token"]), Secret(body["operator_token"])
            return LocalTokens(*listens, *tokens, expires_at=int(body["expires_at"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


def _file_name(listen: str) -> str:
    return f"daemon-{listen.rpartition(':')[2]}.json"


def _write_private(path: Path, data: bytes) -> None:
    """Beside, then renamed: a reader sees the old file or the new one, and never one that others could open."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
