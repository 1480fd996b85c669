"""Access control lists that are modes: what setting one leaves of the mode of a file.

Belongs here: the one extended attribute of the system that ordinary programs set (sed -i, cp -p).
Lists beyond the mode are not part of a tree: no recovery of a program's own data hangs on them.

Facts: acl(5), and posix_acl_xattr.h of the kernel: a version, then tag, permissions and id of each
entry; the group bits of the mode are the mask where there is one.
"""

from __future__ import annotations

import struct

__all__ = ["ACCESS", "mode_of_acl"]

ACCESS = "system.posix_acl_access"
_VERSION = 2
_OWNER, _GROUP, _MASK, _OTHER = 0x01, 0x04, 0x10, 0x20
_ENTRY = struct.Struct("<HHI")


def mode_of_acl(value: bytes) -> int | None:
    """Return the permission bits that an access list gives; ``None`` for what is no such list."""
    if len(value) < 4 or (len(value) - 4) % _ENTRY.size or value[:4] != struct.pack("<I", _VERSION):
        return None
    given: dict[int, int] = {tag: bits for tag, bits, _ in _ENTRY.iter_unpack(value[4:])}
    if not {_OWNER, _GROUP, _OTHER} <= given.keys():
        return None
    group = given.get(_MASK, given[_GROUP])
    return (given[_OWNER] & 7) << 6 | (group & 7) << 3 | given[_OTHER] & 7
