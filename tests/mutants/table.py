"""Mutants of the reference implementation: one line changed, one promise broken, each by name.

Belongs here: the table. `original` is a line of the module as it stands (without its indentation),
`replacement` what takes its place; where a line occurs more than once `occurrence` says which (from
0). `group` is the conformance group, and `store` the adapter, that must catch it. No entry is
removed because nothing catches it: then the suites are too weak.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one line, the promise that it breaks, and who must notice."""

    name: str
    module: str
    original: str
    replacement: str
    promise: str
    group: str
    store: str
    occurrence: int = 0
    slow: bool = False
    """Takes half a minute or more, so that it runs in the soak profile only."""
    first: str = ""
    """The test of the group to begin with: a matter of speed only, the others follow."""


FILE, SEALED, LOCAL = "FileStoreAdapter", "EncryptedFileStoreAdapter", "LocalStorageAdapter"
BARE, SQLITE = "SealedFilesAdapter", "SqliteFileAdapter"
VAULT, DATABASE, GROUPS = "VaultAdapter", "DatabaseAdapter", "GroupStoreAdapter"

MUTANTS = (
    # -- atomic files
    Mutant("fsync dropped", "atomic", "os.fsync(descriptor)", "pass",
           "data is synced before the rename", "atomic", FILE),
    Mutant("directory fsync dropped", "atomic", "fsync_directory(target.parent)", "pass",
           "a replaced name is durable on return", "durable", FILE),
    Mutant("directory fsync of a removal dropped", "atomic", "fsync_directory(target.parent)",
           "pass", "a removal is durable on return", "durable", FILE, 2,
           first="test_a_deletion_survives"),
    Mutant("directory fsync does nothing", "atomic", "os.fsync(descriptor)", "pass",
           "names are durable on return", "durable", LOCAL, 1),
    Mutant("new directories not synced", "atomic", "fsync_directory(directory.parent)", "pass",
           "a new store's directories are durable", "durable", VAULT),
    Mutant("rename too early", "atomic",
           "temporary = create_temporary(target, data, mode=mode)",
           'os.replace(create_temporary(target, b"", mode=mode), target); '
           "temporary = create_temporary(target, data, mode=mode)",
           "a name shows the whole old or the whole new content", "atomic", LOCAL),
    Mutant("written in place", "atomic", "os.replace(temporary, target)",
           "target.write_bytes(data); os.unlink(temporary)",
           "a crash leaves the old content or the new one", "atomic", LOCAL),
    Mutant("short write taken for the whole", "atomic",
           "view = view[os.write(descriptor, view) :]",
           "os.write(descriptor, view); break", "short writes are completed", "faults", LOCAL,
           first="test_short_writes_are_completed"),
    Mutant("failed fsync ignored", "atomic", "os.fsync(descriptor)",
           "exec('try: os.fsync(descriptor)\\nexcept OSError: pass')",
           "a failed sync is told", "faults", LOCAL,
           first="test_a_failed_sync_is_told"),
    Mutant("failed directory fsync ignored", "atomic",
           "raise StorageError(path, error) from error", "return",
           "a failed sync of a directory is told", "faults", LOCAL,
           first="test_a_failed_sync_is_told"),
    Mutant("temporary readable by others", "atomic",
           "descriptor = os.open(temporary, flags, mode)",
           "descriptor = os.open(temporary, flags, 0o644)",
           "files are 0600 from the first instant", "permissions", FILE),
    Mutant("directories open to others", "atomic", "os.mkdir(directory, mode)",
           "os.mkdir(directory, 0o755)", "directories are 0700", "permissions", FILE),
    Mutant("private only after the rename", "atomic",
           "descriptor = os.open(temporary, flags, mode)",
           "descriptor = os.open(temporary, flags, 0o640); os.fchmod(descriptor, mode)",
           "files are 0600 from the first instant", "permissions", LOCAL),
    Mutant("only the first mebibyte is read", "atomic", "if not piece:",
           "if not piece or pieces:", "large values come back whole", "round_trip", LOCAL),
    # -- transactions
    Mutant("journal not written", "transaction", "_write_journal(self.root, steps)", "pass",
           "several files change in one step", "atomic", FILE,
           first="test_several_new_keys_are_all_there_or_none"),
    Mutant("prepared files' names not synced", "transaction", "fsync_directory(directory)", "pass",
           "what the journal names is durable before it", "atomic", FILE,
           first="test_several_new_keys_are_all_there_or_none"),
    Mutant("journal removed before the renames are durable", "transaction",
           "fsync_directory(directory)", "pass", "the journal outlives what it guards", "atomic",
           FILE, 1,
           first="test_several_new_keys_are_all_there_or_none"),
    Mutant("recovery forgets a committed step", "transaction", "_apply(base, found)",
           "remove_durably(base / JOURNAL_NAME)", "a committed step is finished", "atomic", FILE,
           first="test_several_new_keys_are_all_there_or_none"),
    Mutant("journal not synced", "transaction",
           'write_atomic(root / JOURNAL_NAME, hashlib.sha256(body).hexdigest().encode() '
           '+ b"\\n" + body)',
           '(root / JOURNAL_NAME).write_bytes(hashlib.sha256(body).hexdigest().encode() '
           '+ b"\\n" + body)',
           "the journal is whole before anything is renamed", "atomic", FILE,
           first="test_several_new_keys_are_all_there_or_none"),
    # -- the file store
    Mutant("lock dropped", "locking", "if self._depth == 0:", "if False:",
           "openers exclude each other", "concurrency", FILE,
           first="test_an_opener_in_the_middle_of_a_save_breaks_nothing"),
    Mutant("quarantine deletes", "store_files", "os.rename(path, target)", "os.unlink(path)",
           "damaged files are kept", "recovery", FILE,
           first="test_damaged_data_is_never_destroyed"),
    Mutant("checksum not compared", "store_codec",
           "if _checksum(found, version, data) != sha:", "if False:",
           "a changed file is noticed", "recovery", FILE,
           first="test_a_flipped_bit_is_noticed"),
    Mutant("id in the file not compared", "store_codec", "if item.id != item_id:", "if False:",
           "a file in another one's place is noticed", "recovery", FILE,
           first="test_files_that_were_exchanged_are_noticed"),
    Mutant("another process's save overlooked", "file_store",
           "if signature is not None and (known is None or known.signature != signature):",
           "if signature is not None and known is None:",
           "the last save wins, whoever made it", "concurrency", FILE),
    Mutant("restore leaves what came later", "file_store",
           "for place in set(self._places()) - content.files.keys():",
           "for place in ():", "a restore is exact", "backup", FILE),
    Mutant("restore in place", "file_store", "transaction.put(place, data)",
           "(self.root / place).write_bytes(data)", "a restore is one step", "backup", FILE,
           first="test_a_crash_in_a_restore_leaves_old_or_restored"),
    Mutant("backup files not synced", "store_backup", "os.fsync(descriptor)", "pass",
           "a finished backup is durable", "backup", FILE,
           first="test_a_finished_backup_survives"),
    Mutant("backup's name not synced", "store_backup", "fsync_directory(dest.parent)", "pass",
           "a finished backup is durable", "backup", FILE,
           first="test_a_finished_backup_survives"),
    Mutant("newer data taken for damaged", "store_schema", "if version > self.version:",
           "if False:", "newer data is refused and left alone", "migration", FILE,
           first="test_newer_data_is_refused"),
    Mutant("saved in place before the commit", "file_store", "self._run(transaction)",
           "[(self.root / p).write_bytes(e.data) for p, e in puts.items()] or "
           "self._run(transaction)",
           "a save is one step", "atomic", FILE, 1,
           first="test_an_overwrite_is_old_or_new"),
    # -- encryption
    Mutant("nonce fixed", "cipher",
           "header = _HEADER.pack(MAGIC, *self._writing, keys.check, os.urandom(12))",
           "header = _HEADER.pack(MAGIC, *self._writing, keys.check, bytes(12))",
           "nonces are fresh", "encryption", VAULT,
           first="test_one_value_saved_twice_looks_different"),
    Mutant("associated data dropped", "cipher", "return header + context.encode()",
           "return header", "a genuine file in another place is noticed", "encryption", BARE,
           first="test_exchanged_files_are_noticed"),
    Mutant("wrong key taken for damage", "cipher",
           "if not hmac.compare_digest(keys.check, check):", "if False:",
           "a wrong key harms nothing", "encryption", SEALED,
           first="test_a_wrong_key_is_refused"),
    Mutant("change of key not one step", "file_store", "self._commit(changed, ())",
           "[self._commit({place: encoded}, ()) for place, encoded in changed.items()]",
           "a change of key is one step", "encryption", SEALED, 2,
           first="test_a_crash_in_a_change_of_key_leaves_one_that_opens_all"),
    Mutant("vault header written in place", "vault",
           "write_atomic(self.path / HEADER, header.to_bytes())",
           "(self.path / HEADER).write_bytes(header.to_bytes())",
           "one of two passwords opens after a crash", "encryption", VAULT,
           first="test_a_crash_in_a_change_of_key_leaves_one_that_opens_all"),
    Mutant("index written before the file", "vault", "file = self._write_entry(entry)",
           "file = 'early' + secrets.token_hex(13) + _SUFFIX; "
           "self._write_index({**index.entries, key: _Indexed(file=file, **_metadata(entry))}, "
           "entry.serial); os.rename(self.path / self._write_entry(entry), self.path / file)",
           "the index names only what is there", "atomic", VAULT,
           first="test_an_overwrite_is_old_or_new"),
    Mutant("old entry removed before the index", "vault",
           "self._write_index({**index.entries, key: indexed}, entry.serial)",
           "old and remove_durably(self.path / old.file, missing_ok=True); "
           "self._write_index({**index.entries, key: indexed}, entry.serial)",
           "a crash leaves the old value or the new one", "atomic", VAULT,
           first="test_an_overwrite_is_old_or_new"),
    Mutant("vault index not synced", "vault",
           'write_atomic(self.path / INDEX, self._cipher.encrypt(plain, self._context("index")))',
           '(self.path / INDEX).write_bytes(self._cipher.encrypt(plain, self._context("index")))',
           "the index is replaced in one step", "atomic", VAULT,
           first="test_an_overwrite_is_old_or_new"),
    Mutant("plaintext beside the ciphertext", "vault", "file = secrets.token_hex(16) + _SUFFIX",
           "file = secrets.token_hex(16) + _SUFFIX; "
           "(self.path / 'debug.log').write_text(str(entry.value))",
           "nothing readable is on the disk", "encryption", VAULT),
    # -- groups
    Mutant("group snapshot not compared with the index", "snapshot_store",
           "if hashlib.sha256(data).digest() != entry.sha256:", "if False:",
           "an older snapshot is noticed", "encryption", GROUPS,
           first="test_an_older_file_is_noticed"),
    Mutant("group index not synced", "snapshot_store",
           "write_atomic(self.directory / INDEX_NAME, sealed)",
           "(self.directory / INDEX_NAME).write_bytes(sealed)",
           "the index is replaced in one step", "atomic", GROUPS),
    Mutant("group snapshot not synced", "snapshot_store",
           "write_atomic(self.directory / snapshot_name(owner, number), data)",
           "(self.directory / snapshot_name(owner, number)).write_bytes(data)",
           "a snapshot is durable before the index names it", "atomic", GROUPS),
    # -- the database
    Mutant("commits not synced", "sqlite_file", 'connection.execute("PRAGMA synchronous=FULL")',
           'connection.execute("PRAGMA synchronous=OFF")', "a commit is durable", "durable",
           SQLITE, slow=True, first="test_an_overwrite_survives"),
    Mutant("database's name not synced", "sqlite_file", "fsync_directory(self.path.parent)",
           "pass", "a new database is durable", "durable", SQLITE, slow=True,
           first="test_the_first_save_survives"),
    Mutant("`<` for `<=` in retention", "retention",
           'f"SELECT id FROM {table} WHERE {condition} AND microseconds(timestamp) < ? "',
           'f"SELECT id FROM {table} WHERE {condition} AND microseconds(timestamp) <= ? "',
           "at exactly the limit a row stays", "retention", DATABASE),
    Mutant("starred deleted", "retention",
           'snapshots = self._older("snapshots", "starred = 0", now - self.policy.snapshots)',
           'snapshots = self._older("snapshots", "1", now - self.policy.snapshots)',
           "starred snapshots stay", "retention", DATABASE),
    Mutant("clean-up not in a transaction", "retention", "with self.database.transaction():",
           "if True:", "a clean-up is one step", "retention", DATABASE,
           slow=True, first="test_a_crash_in_a_clean_up_removes_all_or_none"),
    Mutant("database readable by others", "sqlite_file",
           "os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE_MODE))",
           "os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644))",
           "the database is private from the first instant", "permissions", SQLITE),
    # -- local storage
    Mutant("damaged lines dropped", "local_storage",
           "self._store(_Content(entries, content.damaged, content.missing))",
           "self._store(_Content(entries))", "what cannot be read is kept", "recovery", LOCAL,
           first="test_damaged_data_is_never_destroyed"),
    Mutant("line checksum not compared", "local_storage",
           'if not space or checksum != b"%08x" % zlib.crc32(body):', "if not space:",
           "a changed line is noticed", "recovery", LOCAL,
           first="test_a_flipped_bit_is_noticed"),
    Mutant("newer storage read as it is", "local_storage", "if version > _VERSION:", "if False:",
           "newer data is refused", "migration", LOCAL,
           first="test_newer_data_is_refused"),
)  # fmt: skip
