"""Invitations: codes to hand over, and the book in which they are kept.

The law: a code holds all that a guest needs to follow a group from the moment of the
invitation and to join it, also weeks later, also for the second time. It is **as secret as a
key**: base64 is no encryption, and whoever reads the code may join. The book keeps codes that
were issued and codes that were received, encrypted, so that a lost group can be re-joined.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from pytest_statepersist.reference import cbor
from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.atomic import (
    check_size,
    checked_path,
    fsync_directory,
    make_directory,
    read_bounded,
    remove_temporaries,
    write_atomic,
)
from pytest_statepersist.reference.envelope import EnvelopeKey, Purpose
from pytest_statepersist.reference.errors import DamagedData, NewerVersion, NotFound
from pytest_statepersist.reference.group_session import GroupSession, Place
from pytest_statepersist.reference.locking import StoreLock
from pytest_statepersist.reference.message_protection import (
    SECRET_SIZE,
    new_x25519_key,
    x25519_public,
)
from pytest_statepersist.reference.slots import (
    GROUP_STATE,
    EpochSecrets,
    GroupState,
    InviteKey,
)
from pytest_statepersist.reference.timestamps import moment_from_text, text_of_moment

__all__ = [
    "BOOK_NAME",
    "Invite",
    "InviteBook",
    "InviteOrigin",
    "InviteTicket",
    "SavedInvite",
    "encode_book",
]

BOOK_NAME = "book.mlss"
_PREFIX = "SPI1."
_VERSION = 1
_LARGEST = 64 << 20


@dataclass(frozen=True, slots=True)
class InviteTicket:
    """The key pair of an invitation that is being made."""

    invite_id: str
    private_key: bytes

    @classmethod
    def new(cls) -> InviteTicket:
        """Return a fresh one."""
        return cls(secrets.token_hex(8), new_x25519_key())

    @property
    def public(self) -> InviteKey:
        """The half that the group gets to know."""
        return InviteKey(invite_id=self.invite_id, public_key=x25519_public(self.private_key))


@checked
@dataclass(frozen=True, slots=True)
class Invite:
    """A ticket, and the group as it was when the ticket became valid.

    ``fetched`` is the transport's position from which the guest has to follow.
    """

    ticket: InviteTicket
    state: GroupState
    secret: bytes
    fetched: int

    def guest(self) -> GroupSession:
        """Return the group as seen by whoever holds this invitation."""
        epoch_secrets = EpochSecrets(epoch=self.state.epoch, secret=self.secret)
        place = Place.of_guest(self.ticket.invite_id, self.ticket.private_key)
        return GroupSession(self.state, epoch_secrets, place)

    def encode(self) -> str:
        """Return the code: one word of URL-safe characters."""
        body = cbor.encode(
            {
                "version": _VERSION,
                "id": self.ticket.invite_id,
                "key": self.ticket.private_key,
                "state": self.state.model_dump(),
                "secret": self.secret,
                "fetched": self.fetched,
            }
        )
        word = base64.urlsafe_b64encode(body + _checksum(body)).decode().rstrip("=")
        return _PREFIX + word

    @classmethod
    def decode(cls, code: str) -> Invite:
        """Return the invitation in a code; space around it and line breaks in it are ignored.

        Raises `DamagedData` (cut short, mistyped, or no code at all), `NewerVersion`.
        """
        word = "".join(code.split())
        if not word.startswith(_PREFIX):
            raise DamagedData(f"this is no invite code: it does not begin with {_PREFIX}")
        try:
            padded = word[len(_PREFIX) :] + "=" * (-len(word[len(_PREFIX) :]) % 4)
            raw = base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True)
        except (binascii.Error, UnicodeEncodeError) as error:
            raise DamagedData(f"the invite code is mistyped or cut short ({error})") from error
        body, check = raw[:-8], raw[-8:]
        if check != _checksum(body):
            raise DamagedData("the invite code is mistyped or cut short: its checksum is wrong")
        content: Any = cbor.decode(body)
        try:
            if content["version"] > _VERSION:
                raise NewerVersion(f"invite code version {content['version']}")
            state = GROUP_STATE.decode(content["state"])
            match content["id"], content["key"], content["secret"], content["fetched"]:
                # Whoever makes a code makes its checksum too: the parts are not to be trusted.
                case str() as name, bytes() as key, bytes() as secret, int() as fetched if (
                    len(key) == len(secret) == SECRET_SIZE and 0 <= fetched < 1 << 63
                ):
                    return cls(InviteTicket(name, key), state, secret, fetched)
        except (KeyError, TypeError) as error:
            raise DamagedData(f"the invite code cannot be read ({error!r})") from error
        raise DamagedData("the invite code cannot be read: a part of it is of the wrong kind")


class InviteOrigin(Enum):
    """How an invitation came into the book."""

    ISSUED = "issued"
    RECEIVED = "received"


@dataclass(frozen=True, slots=True)
class SavedInvite:
    """An invitation in the book."""

    code: str
    origin: InviteOrigin
    saved_at: datetime

    @property
    def invite(self) -> Invite:
        """The invitation itself."""
        return Invite.decode(self.code)


@checked
class InviteBook:
    """The saved invitations of one user: one encrypted file in a directory of its own.

    Safe between processes. Opening raises `StorageError`, `LockTimeout`.
    """

    def __init__(self, directory: str | os.PathLike[str], *, key: EnvelopeKey) -> None:
        self.path = checked_path(directory) / BOOK_NAME
        self._key = key
        make_directory(self.path.parent)
        self._lock = StoreLock(self.path.parent / ".lock")
        with self._lock:
            remove_temporaries(self.path.parent)
            fsync_directory(self.path.parent)  # a killed process may not have got so far

    def save(self, invite: Invite, origin: InviteOrigin, saved_at: datetime) -> None:
        """Keep an invitation: atomic, durable on return. Raises `StorageError`."""
        with self._lock:
            saved = self._read()
            saved[invite.ticket.invite_id] = SavedInvite(invite.encode(), origin, saved_at)
            data = encode_book(tuple(saved.values()), self._key)
            check_size(data, _LARGEST, "invitations")
            write_atomic(self.path, data)

    def list(self) -> tuple[SavedInvite, ...]:
        """Return all saved invitations, oldest first.

        Raises `DamagedData`, `WrongPassword`, `StorageError`.
        """
        with self._lock:
            return tuple(sorted(self._read().values(), key=lambda item: item.saved_at))

    def newest_for(self, group_id: bytes) -> Invite:
        """Return the newest invitation into a group. Raises `NotFound`, and like `list`."""
        for saved in reversed(self.list()):
            if saved.invite.state.group_id == group_id:
                return saved.invite
        raise NotFound(f"no invitation into group {group_id.hex()} was saved; ask for a new one")

    def forget(self, invite_id: str) -> None:
        """Remove an invitation, durably. Raises `NotFound`, `StorageError`."""
        with self._lock:
            saved = self._read()
            if saved.pop(invite_id, None) is None:
                raise NotFound(f"no invitation {invite_id!r} was saved")
            write_atomic(self.path, encode_book(tuple(saved.values()), self._key))

    def _read(self) -> dict[str, SavedInvite]:
        try:
            data = read_bounded(self.path, _LARGEST, follow_symlinks=False)
        except NotFound:
            return {}
        content: Any = cbor.decode(self._key.open(data, purpose=Purpose.INVITES, context=b""))
        try:
            if content["version"] > _VERSION:
                raise NewerVersion(f"{self.path}: version {content['version']}")
            found = [
                SavedInvite(code, InviteOrigin(origin), moment_from_text(saved_at))
                for code, origin, saved_at in content["invites"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedData(f"{self.path}: cannot be read ({error!r})") from error
        return {saved.invite.ticket.invite_id: saved for saved in found}


@checked
def encode_book(saved: tuple[SavedInvite, ...], key: EnvelopeKey) -> bytes:
    """Return the content of a book's file."""
    rows = [[item.code, item.origin.value, text_of_moment(item.saved_at)] for item in saved]
    plain = cbor.encode({"version": _VERSION, "invites": rows})
    return key.seal(plain, purpose=Purpose.INVITES, context=b"")


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:8]
