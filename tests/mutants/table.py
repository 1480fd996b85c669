"""Mutants of the reference implementation: one line changed, one promise broken, each by name.

Belongs here: the table. A mutant says which line of which function is changed, which promise that
breaks, and by whom it must be caught: by which machine or conformance test, on which store, in
which rule, and in which words. A failure in other words does not count, so that no accident can
pass for a catch. No entry is removed because nothing catches it: then the suites are too weak.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.mutants.judge import Target
from tests.mutants.mutation import Change

__all__ = ["MUTANTS", "Caught", "Mutant"]


@dataclass(frozen=True, slots=True)
class Caught:
    """Who catches a mutant; ``at`` matches the test or rule, ``why`` the error and its text."""

    target: Target
    why: str
    at: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one line, and who must notice.

    ``noticed`` names an ordinary unit test that notices it as well: such a mutant is none of the
    40 that only the suites can see.
    """

    name: str
    change: Change
    promise: str
    caught: tuple[Caught, ...]
    noticed: str = ""


FILE, SEALED, LOCAL = "FileStoreAdapter", "EncryptedFileStoreAdapter", "LocalStorageAdapter"
VAULT, DATABASE, GROUPS = "VaultAdapter", "DatabaseAdapter", "GroupStoreAdapter"
JSON, BARE = "ConversationsAdapter", "SealedFilesAdapter"
CRASHES = "power_loss|kill|save|save_many|overwrite|delete|reopen"
LOST = "^AssertionError: (atomicity|durability|unrecoverable): "
ATOMIC, DURABLE = "atomic NO", "durable NO"


def group(test: str, store: str, why: str) -> Caught:
    """Say which conformance test catches a mutant."""
    return Caught(Target(test, store), why, test.partition("/")[2])


def machine(name: str, store: str, why: str, at: str) -> Caught:
    """Say which machine catches a mutant, and in which of its rules."""
    return Caught(Target(f"{name}Machine", store), why, at)


def crashing(store: str) -> Caught:
    """Say that the Atomicity machine catches a mutant, by a crash."""
    return machine("Atomicity", store, LOST, CRASHES)


OVERWRITE, SEVERAL = (
    "atomic/test_an_overwrite_is_old_or_new",
    "atomic/test_several_new_keys_are_all_there_or_none",
)
KEY_CHANGE = "encryption/test_a_crash_in_a_change_of_key_leaves_one_that_opens_all"
BACKUP = "backup/test_a_finished_backup_survives"
DAMAGED_BACKUP = "backup/test_a_damaged_backup_is_refused_and_changes_nothing"

MUTANTS = (
    # -- atomic files
    Mutant("fsync dropped",
           Change("atomic.create_temporary", "os.fsync(descriptor)", "pass"),
           "data is synced before the rename",
           (group(OVERWRITE, FILE, ATOMIC), crashing(LOCAL))),
    Mutant("directory fsync dropped",
           Change("atomic.write_atomic", "fsync_directory(target.parent)", "pass"),
           "a replaced name is durable on return",
           (group("durable/test_an_overwrite_survives", FILE, "missing directory fsync"),
            crashing(FILE))),
    Mutant("directory fsync of a removal dropped",
           Change("atomic.remove_durably", "fsync_directory(target.parent)", "pass"),
           "a removal is durable on return",
           (group("durable/test_a_deletion_survives", FILE, "missing directory fsync"),
            crashing(FILE))),
    Mutant("directory fsync does nothing",
           Change("atomic.fsync_directory", "os.fsync(descriptor)", "pass"),
           "names are durable on return",
           (group("durable/test_an_overwrite_survives", LOCAL, "missing directory fsync"),
            crashing(JSON))),
    Mutant("new directories not synced",
           Change("atomic.make_directory", "fsync_directory(directory.parent)", "pass"),
           "a new store's directories are durable",
           (crashing(VAULT),)),
    Mutant("rename too early",
           Change("atomic.write_atomic", "temporary = create_temporary(target, data, mode=mode)",
                  'os.replace(create_temporary(target, b"", mode=mode), target); '
                  "temporary = create_temporary(target, data, mode=mode)"),
           "a name shows the whole old or the whole new content",
           (group(OVERWRITE, LOCAL, ATOMIC), crashing(LOCAL))),
    Mutant("written in place",
           Change("atomic.write_atomic", "os.replace(temporary, target)",
                  "target.write_bytes(data); os.unlink(temporary)"),
           "a crash leaves the old content or the new one",
           (group(OVERWRITE, LOCAL, ATOMIC), crashing(LOCAL))),
    Mutant("short write taken for the whole",
           Change("atomic._write_completely", "view = view[os.write(descriptor, view) :]",
                  "os.write(descriptor, view); break"),
           "short writes are completed",
           (group("faults/test_short_writes_are_completed", LOCAL, "taken for the whole"),)),
    Mutant("failed fsync ignored",
           Change("atomic.create_temporary", "os.fsync(descriptor)",
                  "exec('try: os.fsync(descriptor)\\nexcept OSError: pass')"),
           "a failed sync is told",
           (group("faults/test_a_failed_sync_is_told", LOCAL, "returned as if it had not"),)),
    Mutant("failed directory fsync ignored",
           Change("atomic.fsync_directory", "raise StorageError(path, error) from error",
                  "return"),
           "a failed sync of a directory is told",
           (group("faults/test_a_failed_sync_is_told", LOCAL, "returned as if it had not"),)),
    Mutant("temporary readable by others",
           Change("atomic.create_temporary", "descriptor = os.open(temporary, flags, mode)",
                  "descriptor = os.open(temporary, flags, 0o644)"),
           "files are 0600 from the first instant",
           (group("permissions/test_an_overwrite_stays_private", FILE, r"tmp~' had mode 0644"),
            machine("Integrity", FILE, "had mode 0644", "look_at_the_files"))),
    Mutant("directories open to others",
           Change("atomic.make_directory", "os.mkdir(directory, mode)",
                  "os.mkdir(directory, 0o755)"),
           "directories are 0700",
           (group("permissions/test_directories_are_private", FILE, "has mode 755"),)),
    Mutant("private only after the rename",
           Change("atomic.create_temporary", "descriptor = os.open(temporary, flags, mode)",
                  "descriptor = os.open(temporary, flags, 0o640); os.fchmod(descriptor, mode)"),
           "files are 0600 from the first instant",
           (group("permissions/test_an_overwrite_stays_private", LOCAL, "tmp~' had mode 0640"),)),
    Mutant("only the first mebibyte is read",
           Change("atomic._read_all", "if not piece:", "if not piece or pieces:"),
           "large values come back whole",
           (group("round_trip/test_a_value_of_more_than_a_mebibyte", LOCAL,
                  "^NotFound: 'key' is not stored"),)),
    # -- transactions
    Mutant("journal not written",
           Change("transaction.Transaction.commit", "_write_journal(self.root, steps)", "pass"),
           "several files change in one step",
           (group(SEVERAL, FILE, ATOMIC),)),
    Mutant("prepared files' names not synced",
           Change("transaction.Transaction._prepare", "fsync_directory(directory)", "pass"),
           "what the journal names is durable before it",
           (group(SEVERAL, FILE, ATOMIC),)),
    Mutant("journal removed before the renames are durable",
           Change("transaction._apply", "fsync_directory(directory)", "pass"),
           "the journal outlives what it guards",
           (group(SEVERAL, FILE, ATOMIC), crashing(FILE))),
    Mutant("recovery forgets a committed step",
           Change("transaction.recover", "_apply(base, found)",
                  "remove_durably(base / JOURNAL_NAME)"),
           "a committed step is finished",
           (group(SEVERAL, FILE, ATOMIC),)),
    Mutant("journal not synced",
           Change("transaction._write_journal",
                  "write_atomic(root / JOURNAL_NAME, hashlib.sha256(body).hexdigest().encode() "
                  '+ b"\\n" + body)',
                  "(root / JOURNAL_NAME).write_bytes(hashlib.sha256(body).hexdigest().encode() "
                  '+ b"\\n" + body)'),
           "the journal is whole before anything is renamed",
           (crashing(FILE),)),
    # -- the file store
    Mutant("lock dropped",
           Change("locking.StoreLock.acquire", "if self._depth == 0:", "if False:"),
           "openers exclude each other",
           (group("concurrency/test_an_opener_in_the_middle_of_a_save_breaks_nothing", FILE,
                  "^(StorageError|AssertionError): .*(No such file|opener that came)"),
            machine("Concurrency", FILE, "error in schedule", "at_once"))),
    Mutant("quarantine deletes",
           Change("store_files.StoreFiles.quarantine", "os.rename(path, target)",
                  "os.unlink(path)"),
           "damaged files are kept",
           (group("recovery/test_damaged_data_is_never_destroyed", FILE, "rescued is gone"),)),
    Mutant("checksum not compared",
           Change("store_codec._open_envelope", "if _checksum(found, version, data) != sha:",
                  "if False:"),
           "a changed file is noticed",
           (group("recovery/test_a_flipped_bit_is_noticed", FILE, "Damage went unnoticed"),
            machine("Integrity", FILE, "without an error, saved was", "tamper"))),
    Mutant("id in the file not compared",
           Change("store_codec.ItemCodec.decode", "if item.id != item_id:", "if False:"),
           "a file in another one's place is noticed",
           (group("recovery/test_files_that_were_exchanged_are_noticed", FILE,
                  "Damage went unnoticed"),
            machine("Integrity", FILE, "without an error, saved was", "tamper"))),
    Mutant("another process's save overlooked",
           Change("file_store.FileStore._encode_if_changed",
                  "if signature is not None and "
                  "(known is None or not known.signature.same_as(signature)):",
                  "if signature is not None and known is None:"),
           "the last save wins, whoever made it",
           (group("concurrency/test_the_last_save_wins", FILE, "^AssertionError"),)),
    Mutant("saved in place before the commit",
           Change("file_store.FileStore._commit", "self._run(transaction)",
                  "[(self.root / p).write_bytes(e.data) for p, e in puts.items()] or "
                  "self._run(transaction)"),
           "a save is one step",
           (group(OVERWRITE, FILE, ATOMIC), crashing(FILE))),
    # -- backups and migrations
    Mutant("restore leaves what came later",
           Change("file_store.FileStore.restore_content",
                  "for place in set(self._places()) - content.files.keys():", "for place in ():"),
           "a restore is exact",
           (group("backup/test_a_restore_removes_what_came_later", FILE, "^AssertionError"),
            machine("Backup", FILE, "without a crash the store holds|durability: ", "restore"))),
    Mutant("restore in place",
           Change("file_store.FileStore.restore_content", "transaction.put(place, data)",
                  "(self.root / place).write_bytes(data)"),
           "a restore is one step",
           (group("backup/test_a_crash_in_a_restore_leaves_old_or_restored", FILE, ATOMIC),)),
    Mutant("backup files not synced",
           Change("store_backup._write_new", "os.fsync(descriptor)", "pass"),
           "a finished backup is durable", (group(BACKUP, FILE, DURABLE),)),
    Mutant("backup's name not synced",
           Change("store_backup._build", "fsync_directory(dest.parent)", "pass"),
           "a finished backup is durable",
           (group(BACKUP, FILE, DURABLE),
            machine("Backup", FILE, "was acknowledged and is gone after a crash",
                    "power_loss|kill|save|delete|restore|back_up"))),
    Mutant("backup's directories not synced",
           Change("store_backup._write_tree",
                  "fsync_directory(building / _FILES / directory)", "pass"),
           "a finished backup is durable",
           (group(BACKUP, FILE, DURABLE),
            machine("Backup", FILE, "^BackupError: .* is missing from the backup",
                    "power_loss|kill|save|delete|restore|back_up"))),
    Mutant("backup built in place",
           Change("store_backup._build",
                  "building = dest.parent / temporary_name(dest.name)", "building = dest"),
           "a backup is there as a whole, or not at all",
           (machine("Backup", FILE, "is no backup: it has no manifest|missing from the backup",
                    "power_loss|kill|save|delete|restore|back_up"),)),
    Mutant("backup file not compared",
           Change("store_backup.verified",
                  "if isinstance(data, bytes) and "
                  "hashlib.sha256(data).hexdigest() == entry.sha256:",
                  "if isinstance(data, bytes):"),
           "a changed backup is refused",
           (group(DAMAGED_BACKUP, FILE, "from a later backup was restored"),)),
    Mutant("backup manifest not compared",
           Change("store_backup.unseal_manifest", 'if sealed.get("sha256") != digest:',
                  "if False:"),
           "a changed backup is refused as a whole",
           (group(DAMAGED_BACKUP, FILE, r"manifest\.json flipped at \d+ was restored"),)),
    Mutant("newer data taken for damaged",
           Change("store_schema.Schema.upgrade", "if version > self.version:", "if False:"),
           "newer data is refused for what it is",
           (group("migration/test_newer_data_is_refused", FILE, "^DamagedData: .*never was"),
            machine("Migration", FILE, "^DamagedData: .*never was",
                    "open_what_newer_code_wrote"))),
    Mutant("migration without its version bump",
           Change("file_store.FileStore.migrate",
                  "place_of(type(old.item), old.item.id): self._codec.encode(old.item)",
                  "place_of(type(old.item), old.item.id): "
                  "replace(self._codec, schema=Schema(old.version, {})).encode(old.item)"),
           "what was migrated opens",
           (group("migration/test_a_crash_in_a_migration_loses_nothing", FILE, "DamagedData"),
            machine("Migration", FILE, "no data of schema version|DamagedData", "migrate|.*"))),
    Mutant("migration in place",
           Change("file_store.FileStore.migrate", "self._commit(changed, ())",
                  "[(self.root / p).write_bytes(e.data) for p, e in changed.items()]"),
           "an interrupted migration loses nothing",
           (group("migration/test_a_crash_in_a_migration_loses_nothing", FILE,
                  "unrecoverable|DamagedData"),
            machine("Migration", FILE, LOST, "migrate|power_loss|kill|save|reopen"))),
    # -- encryption
    Mutant("nonce fixed",
           Change("cipher.Cipher.encrypt",
                  "header = _HEADER.pack(MAGIC, *self._writing, keys.check, os.urandom(12))",
                  "header = _HEADER.pack(MAGIC, *self._writing, keys.check, bytes(12))"),
           "nonces are fresh",
           (group("encryption/test_one_value_saved_twice_looks_different", VAULT, "not fresh"),
            machine("Integrity", VAULT, "The nonce 0+ was used twice", "look_at_the_files"))),
    Mutant("nonce made of the place",
           Change("cipher.Cipher.encrypt",
                  "header = _HEADER.pack(MAGIC, *self._writing, keys.check, os.urandom(12))",
                  "header = _HEADER.pack(MAGIC, *self._writing, keys.check, "
                  "hashlib.sha256(context.encode()).digest()[:12])"),
           "nonces are fresh",
           (machine("Integrity", VAULT, "The nonce .* was used twice", "look_at_the_files"),)),
    Mutant("associated data dropped",
           Change("cipher._bind", "return header + context.encode()", "return header"),
           "a genuine file in another place is noticed",
           (group("encryption/test_exchanged_files_are_noticed", BARE, "Damage went unnoticed"),
            machine("Integrity", BARE, "without an error, saved was", "tamper"))),
    Mutant("wrong key taken for damage",
           Change("cipher.Cipher.decrypt", "if not hmac.compare_digest(keys.check, check):",
                  "if False:"),
           "a wrong key is told, and harms nothing",
           (group("encryption/test_a_wrong_key_is_refused", SEALED, "^IntegrityError"),
            machine("Integrity", SEALED, "^IntegrityError", "open_with_a_wrong_key"))),
    Mutant("change of key not one step",
           Change("file_store.FileStore.rekey", "self._commit(changed, ())",
                  "[self._commit({place: encoded}, ()) for place, encoded in changed.items()]"),
           "a change of key is one step",
           (group(KEY_CHANGE, SEALED, ATOMIC),)),
    Mutant("vault header written in place",
           Change("vault.Vault._write_header",
                  "write_atomic(self.path / HEADER, header.to_bytes())",
                  "os.write(os.open(self.path / HEADER, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, "
                  "0o600), header.to_bytes())"),
           "one of two passwords opens after a crash",
           (group(KEY_CHANGE, VAULT, ATOMIC),)),
    Mutant("index written before the file",
           Change("vault.Vault.store", "file = self._write_entry(entry)",
                  "file = self._write_entry(entry); os.rename(self.path / file, "
                  "self.path / 'later'); self._write_index({**index.entries, key: "
                  "_Indexed(file=file, **_metadata(entry))}, entry.serial); "
                  "os.rename(self.path / 'later', self.path / file); "
                  "fsync_directory(self.path)"),
           "the index names only what is there",
           (group(OVERWRITE, VAULT, ATOMIC), crashing(VAULT))),
    Mutant("old entry removed before the index",
           Change("vault.Vault.store",
                  "self._write_index({**index.entries, key: indexed}, entry.serial)",
                  "old and remove_durably(self.path / old.file, missing_ok=True); "
                  "self._write_index({**index.entries, key: indexed}, entry.serial)"),
           "a crash leaves the old value or the new one",
           (group(OVERWRITE, VAULT, ATOMIC), crashing(VAULT))),
    Mutant("vault index not synced",
           Change("vault.Vault._write_index",
                  "write_atomic(self.path / INDEX, data)",
                  "(self.path / INDEX).write_bytes(data)"),
           "the index is replaced in one step",
           (group(OVERWRITE, VAULT, ATOMIC), crashing(VAULT))),
    Mutant("vault entry not synced",
           Change("vault.Vault._write_entry",
                  "write_atomic(self.path / file, data)",
                  "(self.path / file).write_bytes(data)"),
           "an entry is durable before the index names it",
           (group(OVERWRITE, VAULT, ATOMIC), crashing(VAULT))),
    Mutant("plaintext beside the ciphertext",
           Change("vault.Vault._write_entry", "file = secrets.token_hex(16) + _SUFFIX",
                  "file = secrets.token_hex(16) + _SUFFIX; "
                  "(self.path / 'debug.log').write_text(str(entry.value))"),
           "nothing readable is on the disk",
           (group("encryption/test_nothing_readable_is_on_any_disk", VAULT,
                  "Plaintext is on the disk"),
            machine("Integrity", VAULT, "Plaintext is on the disk", "look_at_the_files"))),
    # -- groups
    Mutant("group snapshot not compared with the index",
           Change("snapshot_store.SnapshotStore._read_snapshot",
                  "if hashlib.sha256(data).digest() != entry.sha256:", "if False:"),
           "an older snapshot is noticed",
           (group("encryption/test_exchanged_files_are_noticed", GROUPS,
                  "Damage went unnoticed"),)),
    Mutant("group index not synced",
           Change("snapshot_store.SnapshotStore._write_index",
                  "write_atomic(self.directory / INDEX_NAME, sealed)",
                  "(self.directory / INDEX_NAME).write_bytes(sealed)"),
           "the index is replaced in one step",
           (group(OVERWRITE, GROUPS, ATOMIC), crashing(GROUPS))),
    Mutant("group snapshot not synced",
           Change("snapshot_store.SnapshotStore.commit",
                  "write_atomic(self.directory / snapshot_name(owner, number), data)",
                  "(self.directory / snapshot_name(owner, number)).write_bytes(data)"),
           "a snapshot is durable before the index names it",
           (group(OVERWRITE, GROUPS, ATOMIC), crashing(GROUPS))),
    # -- the database
    Mutant("commits not synced",
           Change("sqlite_file.SqliteFile._prepare",
                  'connection.execute("PRAGMA synchronous=FULL")',
                  'connection.execute("PRAGMA synchronous=OFF")'),
           "a commit is durable", (crashing(DATABASE),)),
    Mutant("`<` for `<=` in retention",
           Change("retention.Retention._older",
                  'f"SELECT id FROM {table} WHERE {condition} AND microseconds(timestamp) < ? "',
                  'f"SELECT id FROM {table} WHERE {condition} AND microseconds(timestamp) <= ? "'),
           "at exactly the limit a row stays",
           (group("retention/test_what_is_exactly_as_old_as_the_limit_stays", DATABASE,
                  "^AssertionError"),
            machine("Retention", DATABASE, "without a crash the store holds|atomicity|durability",
                    "clean_up|clean_up_several"))),
    Mutant("starred deleted",
           Change("retention.Retention._report",
                  'snapshots = self._older("snapshots", "starred = 0", '
                  "now - self.policy.snapshots)",
                  'snapshots = self._older("snapshots", "1", now - self.policy.snapshots)'),
           "starred snapshots stay",
           (group("retention/test_what_is_starred_stays", DATABASE, "^AssertionError"),)),
    Mutant("database readable by others",
           Change("sqlite_file.SqliteFile._create",
                  "os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE_MODE))",
                  "os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644))"),
           "the database is private from the first instant",
           (group("permissions/test_a_new_store_is_private_at_every_moment", DATABASE,
                  "had mode 0644"),)),
    # -- local storage
    Mutant("damaged lines dropped",
           Change("local_storage.LocalStorage._change",
                  "self._store(_Content(entries, content.damaged, content.missing))",
                  "self._store(_Content(entries))"),
           "what cannot be read is kept",
           (group("recovery/test_damaged_data_is_never_destroyed", LOCAL, "rescued is gone"),)),
    Mutant("line checksum not compared",
           Change("local_storage._entry",
                  'if not space or checksum != b"%08x" % zlib.crc32(body):', "if not space:"),
           "a changed line is noticed",
           (group("recovery/test_a_flipped_bit_is_noticed", LOCAL, "Damage went unnoticed"),
            machine("Integrity", LOCAL, "without an error", "tamper"))),
    Mutant("newer storage read as it is",
           Change("local_storage._header", "if version > _VERSION:", "if False:"),
           "newer data is refused",
           (group("migration/test_newer_data_is_left_untouched", LOCAL,
                  "DID NOT RAISE|never|^AssertionError"),)),
    Mutant("names compared without their case",
           Change("local_storage.LocalStorage._full", 'return f"{self.prefix}.{bare}"',
                  'return f"{self.prefix}.{bare.casefold()}"'),
           "two keys that differ in case are two keys",
           (group("round_trip/test_keys_that_differ_in_case", LOCAL, "^AssertionError"),
            machine("RoundTrip", LOCAL, "^AssertionError", ".*"))),
)  # fmt: skip
