"""How far an event log was durable, and what was in it: a value that others can keep.

The law: pure. A mark is a record number and a chained digest of all records up to it, so that
a log which ends earlier, or which holds other records, does not fit the mark. A log goes
beyond a mark whenever it was appended to since; nothing else may differ.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pytest_statepersist.reference.arguments import checked

__all__ = ["HEAD_SIZE", "LogMark"]

HEAD_SIZE = 32


@checked
@dataclass(frozen=True, slots=True)
class LogMark:
    """Record ``sequence`` (0: before the first) and the ``head`` of the chain up to it."""

    sequence: int = 0
    head: bytes = bytes(HEAD_SIZE)

    def after(self, *records: bytes) -> LogMark:
        """Return the mark after these records."""
        head = self.head
        for record in records:
            head = hashlib.blake2b(record, key=head, digest_size=HEAD_SIZE).digest()
        return LogMark(self.sequence + len(records), head)

    @classmethod
    def of_state(cls, sequence: int, state: bytes) -> LogMark:
        """Return the mark where a chain begins anew: with a state whose records are not known."""
        head = hashlib.blake2b(state, person=b"log state", digest_size=HEAD_SIZE).digest()
        return cls(sequence, head)
