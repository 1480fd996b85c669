"""Ready-made snapshots of the reference implementation, valid ones and broken ones.

Belongs here: `SnapshotFactory`. `making` writes what is valid through the stores' own code, and
`breaking` damages files; neither knows of pytest. The values depend on the seed alone. The bytes of
encrypted kinds do not, since nonces and salts are drawn anew each time.
"""

from __future__ import annotations

from pytest_statepersist.snapshots.breaking import SnapshotDamage
from pytest_statepersist.snapshots.factory import SnapshotFactory
from pytest_statepersist.snapshots.making import MadeSnapshot, SnapshotKind

__all__ = ["MadeSnapshot", "SnapshotDamage", "SnapshotFactory", "SnapshotKind"]
