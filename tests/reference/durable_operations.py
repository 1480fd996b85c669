"""Every public method of the reference implementation: durable, with its cases, or harmless.

The list of methods is generated (`public_operations`), so that one which nobody has thought of
fails the build. What is said here is only why a method needs no case of its own.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from pytest_statepersist import reference
from tests.reference import durable_cases_abc, durable_cases_de, durable_cases_f
from tests.reference.durable_case import Case

CASES: list[Case] = [*durable_cases_abc.CASES, *durable_cases_de.CASES, *durable_cases_f.CASES]

MODULES_IN_MEMORY = {
    "arguments": "checks of arguments",
    "cbor": "an encoding",
    "cipher": "ciphers of bytes",
    "clock": "clocks and timers",
    "conversation_export": "texts from records",
    "conversation_records": "values",
    "conversation_storage": "an interface, and helpers of its two implementations",
    "crdt": "values",
    "database_rows": "values",
    "envelope": "an encoding",
    "errors": "the exception tree",
    "group_frames": "an encoding",
    "group_receiving": "computes from frames",
    "group_session": "computes from frames",
    "ids": "checks of names",
    "items": "values",
    "locking": "a lock file that holds no data",
    "log_frames": "an encoding",
    "log_inspection": "reads",
    "log_mark": "a value",
    "managers": "collections in memory",
    "message_protection": "ciphers of bytes",
    "packing": "compression of bytes",
    "presence": "reads",
    "replica": "a value, rebuilt from the event log",
    "serializers": "encodings",
    "strict_json": "an encoding",
    "store_reports": "values",
    "slots": "values, and the interface of stores",
    "snapshot_diff": "compares values",
    "snapshot_index": "an encoding",
    "snapshot_merge": "computes from values",
    "store_autosave": "a timer; what it calls is FileStore.save_all",
    "snapshot_secrets": "ciphers of bytes",
    "snapshot_signing": "signatures of values",
    "storage_keys": "values",
    "store_codec": "an encoding",
    "store_events": "calls of listeners",
    "store_schema": "computes from documents",
    "timestamps": "texts",
    "values": "values",
    "vault_keys": "an encoding",
}
"""Modules (or classes of one) that never write, and what they do instead."""

READS = "reads"
MEMORY = "changes the object only"
TIMER = "arms or stops a timer; what the timer calls is listed itself"
PART = "a step of "

HARMLESS = {
    "ComponentRegistry": "an interface",
    "Transport": "an interface",
    "MemoryTransport": MEMORY,
    "LiveState": "a value",
    "Found": "a value",
    "Identity": "a value",
    "Invite": "a value",
    "encode_book": "an encoding",
    "parse_identity": "an encoding",
    "load_identity": READS,
    "render_log": "an encoding",
    "render_store": "an encoding",
    "pack_backup": "an encoding",
    "unpack_backup": "an encoding",
    "load_snapshot": READS,
    "stored_version": READS,
    "read_bounded": READS,
    "read_backup": READS,
    "has_identity": READS,
    "Known": "a value",
    "is_temporary": READS,
    "checked_path": "checks a name",
    "resolved_path": READS,
    "check_size": "checks a length",
    "check_frame": "checks a length",
    "temporary_name": "a name",
    "export_all_data": READS,
    "snapshot_transfer.export_state": READS,
    "merge": "computes from values",
    "InviteTicket": "a value",
    "SavedInvite": "a value",
    "Snapshot": "a value",
    "Component": "a value",
    "Manifest": "a value",
    "create_temporary": PART + "write_atomic",
    "fsync_directory": PART + "write_atomic",
    "remove_temporaries": PART + "opening; a left-over temporary is no state",
    "JsonConversations": PART + "Session.save-json and the other cases of this backend",
    "SqliteConversations": PART + "Session.save-sqlite and the other cases of this backend",
    "SqliteFile": PART + "Database.transaction, Retention.run and the cases of both databases",
    "LogFiles": PART + "EventLog.append and EventLog.compact",
    "StoreFiles": PART + "FileStore.save, and FileStore.load_all for quarantine",
    "settled_root": PART + "Messenger.init and import_state, whose recovery it is",
    "make_content": "computes from values",
    "outside": READS,
    "create_backup": PART + "FileStore.backup",
    "read_manifest": READS,
    "seal_manifest": "an encoding",
    "unseal_manifest": "an encoding",
    "verified": "computes from values",
    "recover": PART + "Transaction.commit, whose crashes during recovery run it",
    "sync": PART + "Conversations.sync_with",
}
"""Classes and functions that need no case of their own, and why."""

METHODS = {
    "Transaction": {MEMORY: "put delete"},
    "DirectoryRegistry": {
        READS: "ids get",
        PART + "snapshot_transfer.import_state": "apply locked",
    },
    "FileStore": {
        READS: "root serializer load ids last_save_time autosave_interval backup_content",
        MEMORY: "attach close",
        TIMER: "enable_autosave disable_autosave",
        PART + "restore and restore_from_remote": "restore_content",
    },
    "BackupSchedule": {READS: "backups", TIMER: "start"},
    "RemoteStore": {READS: "load list", PART + "save_snapshot and backup_to_remote": "save"},
    "StateSnapshot": {
        READS: "load",
        "an encoding, or a check": "component validate digest canonical to_json from_json "
        "to_bytes from_bytes",
    },
    "LocalStorage": {READS: "get names bytes_used damage export_all"},
    "Database": {
        READS: "path check session sessions last_session branches messages snapshot snapshots "
        "recording recordings events usage file_changes proofs",
        MEMORY: "close",
    },
    "NightlyRetention": {READS: "next_run", TIMER: "start stop"},
    "AutoSave": {TIMER: "start changed"},
    "Session": {
        READS: "id info title user_id status parent_session_id revision messages unsaved "
        "get_messages context export",
        MEMORY: "send update",
    },
    "Conversations": {
        READS: "load_session messages list_sessions export_all",
        MEMORY: "create_session close",
    },
    "Vault": {READS: "retrieve list search export_key"},
    "EventLog": {READS: "last_sequence mark", MEMORY: "close"},
    "SnapshotStore": {
        READS: "read keys groups was_removed epochs commit_number log_mark history dump",
        MEMORY: "note_log close",
    },
    "Groups": {
        READS: "list ids get was_removed fetched pending_commit current",
        "computes; acknowledge and complete_joining store it": "receive prepare_joining",
    },
    "InviteBook": {READS: "list newest_for"},
    "DirectoryTransport": {READS: "fetch"},
    "Messenger": {
        READS: "channels channel history undelivered epochs contents",
        MEMORY: "close",
    },
}
"""Methods without a case of their own, by class and by reason."""


AMBIGUOUS = {"export_state", "import_state"}
"""Functions of the same name in two modules; these are named with their module."""


def public_operations() -> set[str]:
    """Every public function and method of every module that may write, as ``Owner.method``."""
    found: set[str] = set()
    for info in pkgutil.iter_modules(reference.__path__):
        if info.name in MODULES_IN_MEMORY:
            continue
        module = importlib.import_module(f"{reference.__name__}.{info.name}")
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(value):
                found.add(f"{info.name}.{name}" if name in AMBIGUOUS else name)
            elif inspect.isclass(value):
                found |= {f"{name}.{method}" for method in _methods(value)}
    return found


def _methods(owner: type) -> set[str]:
    kinds = (classmethod, staticmethod, property)
    return {
        name
        for name, value in vars(owner).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, kinds))
    }


def declared_harmless() -> set[str]:
    """The operations that this table excuses, as ``Owner.method`` or a function's name."""
    methods = {
        f"{owner}.{name}"
        for owner, reasons in METHODS.items()
        for names in reasons.values()
        for name in names.split()
    }
    whole = {
        name
        for name in public_operations()
        if name in HARMLESS or name.partition(".")[0] in HARMLESS
    }
    return methods | whole
