"""Who may do what over OPC UA: accounts from a YAML file, passwords as scrypt hashes (RFC 7914).

The file::

    users:
      anna: {role: operator, password: "scrypt$16384$8$1$<salt>$<hash>"}

``python -m controller.gateways.opcua_users anna operator`` asks for a password and prints such a line.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import enum
import getpass
import hashlib
import hmac
import os
import secrets
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MAX_PASSWORD = 256
"""Characters of a password at most: an unbounded one would be free work for whoever sends it."""
_N, _R, _P = 2**14, 8, 1
_MAX_N, _MAX_R, _MAX_P = 2**17, 16, 4
_MAX_NAME = 64


class Role(enum.StrEnum):
    """What a user may do. Every role may browse, read and subscribe, as anonymous clients may."""

    OBSERVER = "observer"
    OPERATOR = "operator"
    MAINTENANCE = "maintenance"
    ENGINEER = "engineer"

    @property
    def commands(self) -> bool:
        """Whether the role may give commands to the line and its stations."""
        return self is not Role.OBSERVER


class UsersError(Exception):
    """The users file is wrong (the engineer's to mend); the text says where and how."""


@dataclass(frozen=True, slots=True)
class Account:
    """One user."""

    name: str
    role: Role
    password: str
    """``scrypt$n$r$p$salt$hash``, salt and hash in base64."""


def hash_password(password: str) -> str:
    """A new salted hash ``scrypt$n$r$p$salt$hash`` of the password (1..256 characters).

    Raises:
        ValueError: the password is empty or too long.
    """
    if not 1 <= len(password) <= MAX_PASSWORD:
        raise ValueError(f"a password has 1 to {MAX_PASSWORD} characters")
    salt = secrets.token_bytes(16)
    digest = hashlib.scrypt(password.encode(), salt=salt, n=_N, r=_R, p=_P, maxmem=_memory(_N, _R, _P), dklen=32)
    return f"scrypt${_N}${_R}${_P}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def _memory(n: int, r: int, p: int) -> int:
    return 128 * r * (n + p + 2) + 1024 * 1024


def _parse(encoded: str) -> tuple[int, int, int, bytes, bytes]:
    parts = encoded.split("$")
    if len(parts) != 6 or parts[0] != "scrypt":
        raise ValueError("not of the form scrypt$n$r$p$salt$hash")
    try:
        n, r, p = (int(x) for x in parts[1:4])
        salt, digest = (base64.b64decode(x, validate=True) for x in parts[4:6])
    except (ValueError, binascii.Error) as error:
        raise ValueError("not of the form scrypt$n$r$p$salt$hash") from error
    if not (2**10 <= n <= _MAX_N and n & (n - 1) == 0 and 1 <= r <= _MAX_R and 1 <= p <= _MAX_P):
        raise ValueError(f"n must be a power of 2 in 1024..{_MAX_N}, r in 1..{_MAX_R}, p in 1..{_MAX_P}")
    if len(salt) < 8 or len(digest) < 16:
        raise ValueError("the salt needs 8 bytes or more, the hash 16 or more")
    return n, r, p, salt, digest


def check_password(password: str, encoded: str) -> bool:
    """Whether the password belongs to the hash. Constant time in the comparison; about 40 ms of CPU.

    Raises:
        ValueError: ``encoded`` is not a valid hash.
    """
    n, r, p, salt, digest = _parse(encoded)
    if not 1 <= len(password) <= MAX_PASSWORD:
        return False
    ours = hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=_memory(n, r, p), dklen=len(digest))
    return hmac.compare_digest(ours, digest)


class Users:
    """The accounts, and the one question about them: is this password theirs?"""

    def __init__(self, accounts: Mapping[str, Account]) -> None:
        self.accounts = dict(accounts)
        self._decoy = hash_password(secrets.token_urlsafe(16))
        self._slots = asyncio.Semaphore(2)

    async def verify(self, name: str, password: str) -> Account | None:
        """The account, or ``None``. Hashing runs off the loop, two at a time; unknown names cost the same."""
        account = self.accounts.get(name)
        async with self._slots:
            right = await asyncio.to_thread(
                check_password, password, self._decoy if account is None else account.password
            )
        return account if right else None


class _Loader(yaml.SafeLoader):
    """YAML without silent duplicates: of two entries for one user, neither is to be guessed."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise UsersError(f"line {key_node.start_mark.line + 1}: a name must be text, not {key!r}; quote it")
        if key in result:
            raise UsersError(f"line {key_node.start_mark.line + 1}: {key!r} is there twice; remove one of them")
        result[key] = loader.construct_object(value_node, deep=True)
    return result


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_users(path: Path) -> Users:
    """Read a users file.

    Raises:
        UsersError: it cannot be read, or an entry is wrong; the text names file, user and remedy.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsersError(f"{path}: cannot be read ({error}); check the path and its permissions") from error
    except yaml.YAMLError as error:
        raise UsersError(f"{path}: not valid YAML: {error}") from error
    except UsersError as error:
        raise UsersError(f"{path}: {error}") from error
    entries = data.get("users") if isinstance(data, dict) and set(data) == {"users"} else None
    if not isinstance(entries, dict) or not entries:
        raise UsersError(f"{path}: expected one mapping 'users:' with at least one user in it")
    return Users({name: _account(path, name, entry) for name, entry in entries.items()})


def _account(path: Path, name: str, entry: object) -> Account:
    where = f"{path}: user {name!r}"
    if not 1 <= len(name) <= _MAX_NAME or not name.isprintable():
        raise UsersError(f"{where}: a name has 1 to {_MAX_NAME} printable characters")
    if not isinstance(entry, dict) or set(entry) != {"role", "password"}:
        raise UsersError(f"{where}: expected exactly 'role' and 'password'")
    roles = ", ".join(Role)
    if entry["role"] not in list(Role):
        raise UsersError(f"{where}: role {entry['role']!r} is none of {roles}")
    try:
        _parse(str(entry["password"]))
    except ValueError as error:
        raise UsersError(
            f"{where}: password is {error}; make one with python -m controller.gateways.opcua_users"
        ) from error
    return Account(name, Role(entry["role"]), str(entry["password"]))


def generated_operator(path: Path) -> Users:
    """One account ``operator`` whose password stands in ``path`` (mode 0600, one line ``operator:<password>``).

    A file that is already there, ours alone and well-formed is used again, so that HMIs keep their password over
    a restart; anything else in its place is replaced.

    Raises:
        UsersError: the file cannot be written (disk full, no permission).
    """
    password = _stored(path)
    if password is None:
        password = secrets.token_hex(12)  # nothing in it that a command line would take for an option
        draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        try:
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            try:
                with os.fdopen(handle, "w", encoding="ascii") as file:
                    file.write(f"operator:{password}\n")
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(path)
            except OSError:
                draft.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise UsersError(f"{path}: the operator's password cannot be written ({error})") from error
    return Users({"operator": Account("operator", Role.OPERATOR, hash_password(password))})


def _stored(path: Path) -> str | None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(handle, encoding="ascii", errors="replace") as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o077:
            return None
        name, _, password = file.read(512).strip().partition(":")
    return password if name == "operator" and 16 <= len(password) <= MAX_PASSWORD and password.isascii() else None


def main(argv: list[str] | None = None) -> int:
    """Make one entry of a users file; the password is asked for, never taken from the command line."""
    parser = argparse.ArgumentParser(prog="python -m controller.gateways.opcua_users", description=main.__doc__)
    parser.add_argument("name")
    parser.add_argument("role", choices=list(Role))
    args = parser.parse_args(argv)
    password = getpass.getpass("Password: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    if sys.stdin.isatty() and getpass.getpass("Again: ") != password:
        print("the two passwords differ; nothing was made", file=sys.stderr)
        return 1
    try:
        hashed = hash_password(password)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(f'  {args.name}: {{role: {args.role}, password: "{hashed}"}}')
    return 0


if __name__ == "__main__":
    sys.exit(main())
