"""A persistence model in words: one sentence for each flag that it sets."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_statepersist.core.models import (
    FsyncDirectory,
    FsyncFile,
    MetadataOrder,
    Model,
    SyncCall,
)

__all__ = ["rules"]

_ORDER = {
    MetadataOrder.NONE: "Nothing but a sync call orders anything.",
    MetadataOrder.JOURNAL: (
        "Names, sizes and attributes reach the disk in the order of the calls (a journal); data "
        "does not."
    ),
    MetadataOrder.LOG: (
        "Names, sizes and attributes reach the disk in the order of the calls, except for what a "
        "sync brings there earlier through a log of its own."
    ),
}
_FILE = {
    FsyncFile.ITSELF: "fsync(file) forces its data, size and attributes, not its name.",
    FsyncFile.EARLIER_METADATA: (
        "fsync(file) forces its data, and all metadata up to the file's last change; so the name "
        "of a new file too."
    ),
    FsyncFile.NAMES: "fsync(file) forces its data, size, attributes and names.",
}
_DIRECTORY = {
    FsyncDirectory.ENTRIES: "fsync(directory) forces its entries.",
    FsyncDirectory.EVERYTHING: "fsync(directory) forces all metadata before the call.",
    FsyncDirectory.EARLIER_METADATA: (
        "fsync(directory) forces all metadata up to the directory's last change."
    ),
    FsyncDirectory.ENTRIES_AND_NAME: "fsync(directory) forces its entries and its own name.",
}
_SYNC = {
    SyncCall.NOTHING: "sync and syncfs force nothing: they may return before the work is done.",
    SyncCall.EVERYTHING: "sync and syncfs force everything.",
    SyncCall.IF_METADATA_PENDING: (
        "sync and syncfs force everything, but not overwritten data when no metadata was waiting."
    ),
}


def rules(model: Model) -> Iterator[str]:
    """Yield the rules of a model, one sentence each."""
    if model.page_cache_survives:
        yield "Every completed call stays; the one in progress may be half done."
        return
    yield _ORDER[model.metadata_order]
    yield _FILE[model.fsync_file]
    yield _DIRECTORY[model.fsync_directory]
    if model.fdatasync_is_fsync:
        yield "fdatasync is a full fsync."
    else:
        yield "fdatasync forces data and size only."
    yield _SYNC[model.sync]
    if model.size_needs_data:
        yield "A file's size grows on disk only with its last block; earlier ones may be missing."
    else:
        yield "A file's size may be on disk before its data: zeros stand in the gap."
    if model.data_needs_metadata:
        yield "Data appears only with the metadata that leads to it (copy on write)."
    if model.allocate_on_replace:
        yield "A rename over an existing file needs the new file's size, though not its data."
    if model.tail_zeroed_first:
        yield "A shrinking truncate zeroes the tail before the size changes."
    if model.reuse_freed_blocks:
        yield (
            "Blocks that were freed may hold other data of the workload while the old name and "
            "size are still on disk."
        )
    if model.names_return:
        yield "A name that a file had when it was synced may be back."
    if model.log_forgets:
        yield "A name that a sync forced is forgotten once a later call takes it away."
    if not model.atomic_cross_directory_rename:
        yield "A rename to another directory may show both names, never neither."
    yield f"A write tears at multiples of {model.unit:,} bytes of the file."
    if not model.validated:
        yield "No measurement supports this model yet."
