"""Where the machines saw a mutant soon: a seed whose first examples show it.

Belongs here: seeds, which save time and decide nothing. One that shows its mutant no longer (a rule
was added, say) costs a few examples, and the search of the ci profile follows.
"""

from __future__ import annotations

__all__ = ["FIRST", "SEEDS"]

FIRST = 8
"""So many examples are tried by seed."""

SEEDS: dict[tuple[str, str], int] = {
    ("directory fsync dropped", "AtomicityMachine on FileStoreAdapter"): 0,
    ("directory fsync of a removal dropped", "AtomicityMachine on FileStoreAdapter"): 6,
    ("written in place", "AtomicityMachine on LocalStorageAdapter"): 0,
    ("temporary readable by others", "IntegrityMachine on FileStoreAdapter"): 0,
    ("journal not synced", "AtomicityMachine on FileStoreAdapter"): 10,
    ("checksum not compared", "IntegrityMachine on FileStoreAdapter"): 3,
    ("id in the file not compared", "IntegrityMachine on FileStoreAdapter"): 11,
    ("restore leaves what came later", "BackupMachine on FileStoreAdapter"): 3,
    ("backup's directories not synced", "BackupMachine on FileStoreAdapter"): 4,
    ("backup manifest not synced", "BackupMachine on FileStoreAdapter"): 3,
    ("migration in place", "MigrationMachine on FileStoreAdapter"): 1,
    ("vault entry removed before the index", "AtomicityMachine on VaultAdapter"): 0,
    ("vault used without its lock", "ConcurrencyMachine on VaultAdapter"): 1,
    ("single removal not synced", "AtomicityMachine on FileStoreAdapter"): 6,
    ("saved in place before the commit", "AtomicityMachine on FileStoreAdapter"): 2,
    ("index written before the file", "AtomicityMachine on VaultAdapter"): 14,
    ("clean-up not in a transaction", "RetentionMachine on DatabaseAdapter"): 1,
    ("long names cut", "RoundTripMachine on LocalStorageAdapter"): 6,
}
