"""Persistence models: what each file system may leave after a crash, as declarations.

Belongs here: the flags, and which file system has which. What a flag does to a trace is in
`effects` (which effect needs which) and `forcing` (what a sync call makes durable). Rules:

1. A model is data. No model has code of its own.
2. A flag that *forbids* something cites its evidence (docs/explanation/models.md); where nothing
   was measured the looser reading is taken, because a model that is too strict says "safe" falsely.
3. `posix` is the weakest: only a sync call orders anything.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_statepersist.core.tree import BLOCK
from pytest_statepersist.errors import UserError

if TYPE_CHECKING:
    from pytest_statepersist.core.operations import Trace
    from pytest_statepersist.core.tree import Tree

__all__ = [
    "MODELS",
    "FailedSync",
    "FsyncDirectory",
    "FsyncFile",
    "MetadataOrder",
    "Model",
    "SyncCall",
    "get_model",
    "get_models",
]


class MetadataOrder(enum.Enum):
    """In which order metadata reaches the disk."""

    NONE = "none"
    JOURNAL = "journal"
    """A prefix of the trace order, always."""
    LOG = "log"
    """A prefix of the trace order, joined with what a log of synced files holds (btrfs)."""


class FsyncFile(enum.Enum):
    """What fsync of a file forces beside its data, size and attributes."""

    ITSELF = "itself"
    EARLIER_METADATA = "all metadata up to the file's last change"
    NAMES = "its names"


class FsyncDirectory(enum.Enum):
    """What fsync of a directory forces."""

    ENTRIES = "its entries"
    EVERYTHING = "all metadata before the call"
    EARLIER_METADATA = "all metadata up to the directory's last change"
    ENTRIES_AND_NAME = "its entries and its own name"


class FailedSync(enum.Enum):
    """What reads of a file give after a sync of it has failed."""

    KEEPS = "the new content, though no later sync writes it"
    REVERTS = "the content of the last sync"
    EITHER = "one or the other"


class SyncCall(enum.Enum):
    """What sync and syncfs force."""

    NOTHING = "nothing"
    EVERYTHING = "everything"
    IF_METADATA_PENDING = "everything, but no data when no metadata was waiting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The rules by which a crash may leave a disk; see docs/explanation/models.md for each flag."""

    name: str
    summary: str
    metadata_order: MetadataOrder = MetadataOrder.NONE
    size_needs_data: bool = False
    data_needs_metadata: bool = False
    allocate_on_replace: bool = False
    tail_zeroed_first: bool = False
    reuse_freed_blocks: bool = False
    names_return: bool = False
    atomic_cross_directory_rename: bool = True
    log_forgets: bool = False
    fsync_file: FsyncFile = FsyncFile.ITSELF
    fsync_directory: FsyncDirectory = FsyncDirectory.ENTRIES
    fdatasync_is_fsync: bool = False
    sync: SyncCall = SyncCall.EVERYTHING
    failed_sync: FailedSync = FailedSync.EITHER
    sector_tearing: bool = True
    tear: int = BLOCK
    page_cache_survives: bool = False
    validated: bool = True

    def __post_init__(self) -> None:
        if self.tear not in (BLOCK, 512):
            raise UserError(
                f"tear={self.tear!r} is not a unit that a device can tear writes at; use {BLOCK} "
                "(pages) or 512 (sectors)"
            )

    @property
    def unit(self) -> int:
        """Bytes that reach the disk together, at offsets that it divides."""
        return self.tear if self.sector_tearing else BLOCK

    @property
    def waives_order(self) -> bool:
        """Whether a sync may make something durable before what precedes it."""
        return self.metadata_order is MetadataOrder.LOG

    def with_options(
        self,
        *,
        tear: int | None = None,
        reuse_freed_blocks: bool | None = None,
        names_return: bool | None = None,
        sync: SyncCall | None = None,
    ) -> Model:
        """Return this model with options changed; the name says which."""
        changed = {
            key: value
            for key, value in {
                "tear": tear,
                "reuse_freed_blocks": reuse_freed_blocks,
                "names_return": names_return,
                "sync": sync,
            }.items()
            if value is not None and value != getattr(self, key)
        }
        if not changed:
            return self
        words = [
            f"{key}={value.name.lower() if isinstance(value, enum.Enum) else value}"
            for key, value in changed.items()
        ]
        return replace(self, name=f"{self.name}({', '.join(words)})", **changed)  # type: ignore[arg-type]

    def allows(self, trace: Trace, tree: Tree, at: int | None = None) -> bool:
        """Say whether a crash may leave ``tree``; ``at`` is one crash point, else any.

        A crash point counts the operations that had returned. Modes count where the trace changes
        them; times do not. Two equal files of the tree may be one file with two names in the state.
        Raises `TraceError` for a trace that contradicts itself, `UserError` for no crash point.
        """
        from pytest_statepersist.core.apply import check
        from pytest_statepersist.core.states import allows

        check(trace)
        return allows(trace, self, tree, at=at)

    def __str__(self) -> str:
        return self.name


POSIX = Model(
    name="posix",
    summary="only a sync call orders anything; the weakest, so code that is safe here is safe",
    atomic_cross_directory_rename=False,
    sync=SyncCall.NOTHING,
)
EXT4 = Model(
    name="ext4",
    summary="ext4 as Linux mounts it: data=ordered, delayed allocation, auto_da_alloc",
    metadata_order=MetadataOrder.JOURNAL,
    allocate_on_replace=True,
    tail_zeroed_first=True,
    fsync_file=FsyncFile.EARLIER_METADATA,
    fsync_directory=FsyncDirectory.EVERYTHING,
    failed_sync=FailedSync.KEEPS,
)
EXT4_WRITEBACK = replace(
    EXT4,
    name="ext4-writeback",
    summary="ext4 mounted with data=writeback",
    tail_zeroed_first=False,
    reuse_freed_blocks=True,
)
EXT4_NOAUTO = replace(
    EXT4,
    name="ext4-noauto_da_alloc",
    summary="ext4 mounted with noauto_da_alloc: no flush when a file replaces another",
    allocate_on_replace=False,
)
XFS = Model(
    name="xfs",
    summary="XFS with default options",
    metadata_order=MetadataOrder.JOURNAL,
    size_needs_data=True,
    fsync_file=FsyncFile.EARLIER_METADATA,
    fsync_directory=FsyncDirectory.EARLIER_METADATA,
    sync=SyncCall.IF_METADATA_PENDING,
    failed_sync=FailedSync.KEEPS,
)
BTRFS = Model(
    name="btrfs",
    summary="btrfs with default options: copy on write, and a log of what was synced",
    metadata_order=MetadataOrder.LOG,
    size_needs_data=True,
    data_needs_metadata=True,
    names_return=True,
    log_forgets=True,
    fsync_file=FsyncFile.NAMES,
    fsync_directory=FsyncDirectory.ENTRIES_AND_NAME,
    fdatasync_is_fsync=True,
    failed_sync=FailedSync.REVERTS,
    sector_tearing=False,
)
KILL = Model(
    name="kill",
    summary="the process dies, the system lives on: every completed call stays",
    size_needs_data=True,
    failed_sync=FailedSync.KEEPS,
    page_cache_survives=True,
)

MODELS: dict[str, Model] = {
    model.name: model for model in (POSIX, EXT4, EXT4_WRITEBACK, EXT4_NOAUTO, XFS, BTRFS, KILL)
}
"""The models by name, weakest first."""


def get_model(name: str | Model) -> Model:
    """Return the model of that name; raises `UserError` naming the ones that exist."""
    if isinstance(name, Model):
        return name
    if not isinstance(name, str):
        raise UserError(f"a model is given by name, not as {type(name).__name__}: {name!r}")
    found = MODELS.get(name)
    if found is None:
        raise UserError(
            f"there is no persistence model {name!r}; choose from {', '.join(MODELS)} "
            "(docs/explanation/models.md says what each stands for)"
        )
    return found


def get_models(names: str | Model | Iterable[str | Model]) -> tuple[Model, ...]:
    """Return the named models in order, each once; raises `UserError` for none or an unknown."""
    listed = [names] if isinstance(names, str | Model) else list(names)
    if not listed:
        raise UserError("no persistence model was named; leave model out for 'posix'")
    return tuple({model.name: model for model in map(get_model, listed)}.values())
