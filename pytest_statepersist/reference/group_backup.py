"""Backup, restore, and moving a messenger to another machine: one encrypted file.

The law: an export is one point in time of everything, under a password or key of its own. An
import checks the whole file before it touches anything and then replaces everything in one
atomic step: a crash leaves the old state or the imported one. An import draws new
*incarnations* for the message numbers, because the export may be older than the last message
that was sent from where it was made, and no number may be used twice.
"""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path
from typing import Any

from pytest_statepersist.reference import cbor
from pytest_statepersist.reference.arguments import checked
from pytest_statepersist.reference.atomic import (
    check_size,
    checked_path,
    is_temporary,
    make_directory,
    read_bounded,
    write_atomic,
)
from pytest_statepersist.reference.clock import Clock, SystemClock
from pytest_statepersist.reference.envelope import EnvelopeKey, Purpose
from pytest_statepersist.reference.errors import (
    BackupError,
    ConflictError,
    DamagedData,
    NewerVersion,
    NotFound,
    StorageError,
)
from pytest_statepersist.reference.identity import IDENTITY_NAME, Identity, parse_identity
from pytest_statepersist.reference.invites import (
    BOOK_NAME,
    InviteOrigin,
    SavedInvite,
    encode_book,
)
from pytest_statepersist.reference.log_files import render_log
from pytest_statepersist.reference.messenger import (
    GROUP_DIRECTORY,
    INVITE_DIRECTORY,
    STATE_DIRECTORIES,
    Contents,
    Messenger,
    has_identity,
    settled_root,
)
from pytest_statepersist.reference.replica import Replica
from pytest_statepersist.reference.slots import CLIENT, MESSAGE_COUNTERS, SLOTS
from pytest_statepersist.reference.snapshot_store import SlotValues, render_store
from pytest_statepersist.reference.timestamps import moment_from_text, text_of_moment
from pytest_statepersist.reference.transaction import Transaction

__all__ = ["export_state", "import_state"]

_logger = logging.getLogger(__name__)
_VERSION = 1
_LARGEST = 1 << 30


@checked
def export_state(
    messenger: Messenger,
    path: str | os.PathLike[str],
    *,
    key: EnvelopeKey,
    clock: Clock | None = None,
) -> None:
    """Write everything to one encrypted file: atomic, durable on return, mode 0600.

    Raises `DamagedData` (a group cannot be read: nothing is written), `StorageError`.
    """
    contents = messenger.contents()
    plain = _encode(contents, text_of_moment((clock or SystemClock()).now()))
    data = key.seal(plain, purpose=Purpose.EXPORT, context=b"")
    check_size(data, _LARGEST, "export")
    write_atomic(path, data)
    _logger.info("exported %d group(s) to %s", len(contents.slots.keys() - {CLIENT}), path)


@checked
def import_state(
    root: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    export_key: EnvelopeKey,
    key: EnvelopeKey,
    replace: bool = False,
    clock: Clock | None = None,
) -> Identity:
    """Make ``root`` hold what was exported, encrypted under ``key``: durable on return.

    The root may be absent or empty, or, with ``replace``, a messenger's that is closed. A
    crash leaves the old or the imported state as a whole, settled by the next opening. Raises
    `BackupError` (no such export, or damaged), `WrongPassword`, `NewerVersion`,
    `ConflictError` (there is an identity already), `StorageError`.
    """
    contents = _read(checked_path(path), export_key)
    target = checked_path(root)
    make_directory(target)
    for name in STATE_DIRECTORIES:
        make_directory(target / name)
    with settled_root(target):
        if not replace and has_identity(target):
            raise ConflictError(
                f"{target}: holds an identity already; import with replace=True to give it up"
            )
        files = _render(contents, key, clock or SystemClock())
        step = Transaction(target)
        for name in _present(target) - files.keys():
            step.delete(name)
        for name, data in files.items():
            step.put(name, data)
        step.commit()
    _logger.info("imported %s from %s", contents.identity.display_name, path)
    return contents.identity


def _render(contents: Contents, key: EnvelopeKey, clock: Clock) -> dict[str, bytes]:
    slots = {owner: _reincarnated(values) for owner, values in contents.slots.items()}
    files, mark = render_log(contents.replica, key=key)
    store = render_store(slots, contents.removed, log=mark, key=key, clock=clock)
    files |= {f"{GROUP_DIRECTORY}/{name}": data for name, data in store.items()}
    files[f"{INVITE_DIRECTORY}/{BOOK_NAME}"] = encode_book(contents.invites, key)
    files[IDENTITY_NAME] = contents.identity.encode()
    return files


def _reincarnated(values: SlotValues) -> SlotValues:
    counters = values.get(MESSAGE_COUNTERS.name, {}).get("")
    if counters is None:
        return values
    fresh = MESSAGE_COUNTERS.decode(counters).model_copy(
        update={"incarnation": secrets.token_bytes(8), "reserved": 0}
    )
    return values | {MESSAGE_COUNTERS.name: {"": fresh.model_dump()}}


def _present(root: Path) -> set[str]:
    """Return all files of a messenger's state, so that what is not imported goes."""
    found: set[str] = set()
    try:
        for directory in STATE_DIRECTORIES:
            for name in os.listdir(root / directory):
                if name != ".lock" and not is_temporary(name):
                    found.add(f"{directory}/{name}")
    except OSError as error:
        raise StorageError(root, error) from error
    return found


def _encode(contents: Contents, exported_at: str) -> bytes:
    return cbor.encode(
        {
            "version": _VERSION,
            "exported_at": exported_at,
            "identity": contents.identity.encode(),
            "slots": {owner.hex(): values for owner, values in contents.slots.items()},
            "removed": {group_id.hex(): epoch for group_id, epoch in contents.removed.items()},
            "replica": contents.replica,
            "invites": [
                [saved.code, saved.origin.value, text_of_moment(saved.saved_at)]
                for saved in contents.invites
            ],
        }
    )


def _read(path: Path, key: EnvelopeKey) -> Contents:
    """Return the contents of an export, every part of it checked."""
    try:
        data = read_bounded(path, _LARGEST)
        content: Any = cbor.decode(key.open(data, purpose=Purpose.EXPORT, context=b""))
        if content["version"] > _VERSION:
            raise NewerVersion(f"{path}: export version {content['version']}")
        identity = parse_identity(content["identity"])
        slots = {bytes.fromhex(owner): values for owner, values in content["slots"].items()}
        for values in slots.values():
            _check_slots(values)
        Replica.load(str(identity.user_id), content["replica"])
        invites = tuple(
            SavedInvite(code, InviteOrigin(origin), moment_from_text(saved_at))
            for code, origin, saved_at in content["invites"]
        )
        removed = {bytes.fromhex(owner): int(epoch) for owner, epoch in content["removed"].items()}
        return Contents(identity, slots, removed, content["replica"], invites)
    except NotFound as error:
        raise BackupError(f"{path}: there is no export") from error
    except (DamagedData, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BackupError(f"{path}: is damaged or no export ({error}); nothing changed") from error


def _check_slots(values: SlotValues) -> None:
    known = {slot.name: slot for slot in SLOTS}
    for name, found in values.items():
        if name not in known:
            raise DamagedData(f"unknown slot {name!r}")
        for value in found.values():
            known[name].decode(value)
