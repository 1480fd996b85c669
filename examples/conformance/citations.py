"""The lines of source that ``xfails.toml`` cites, so that a test can compare them.

Belongs here: one entry for each place, in the version that is named.
"""

from __future__ import annotations

from examples.example import Citation

__all__ = ["CITED"]

_LINES = {
    ("ZODB", "6.4", "ZODB.Connection"): {
        235: "obj = self._cache.get(oid, None)",
    },
    ("ZODB", "6.4", "ZODB.FileStorage.FileStorage"): {
        297: "self._file = open(file_name, 'w+b')",
        298: "self._file.write(packed_version)",
        823: "self._file.flush()",
        854: "self._file.write(as_bytes(self._tstatus))",
        863: "self.close()",
    },
    ("cachelib", "0.17.0", "cachelib.file"): {
        223: "except (OSError, EOFError, struct.error):",
        265: "self._run_safely(os.replace, tmp, filename)",
        284: "os.remove(self._get_filename(key))",
    },
    ("python", "3.11.7", "dbm.dumb"): {
        84: "except OSError:",
        87: 'with _io.open(self._datfile, \'w\', encoding="Latin-1") as f:',
        97: 'f = _io.open(self._dirfile, \'r\', encoding="Latin-1")',
        126: "self._os.rename(self._dirfile, self._bakfile)",
        130: 'with self._io.open(self._dirfile, \'w\', encoding="Latin-1") as f:',
        165: "f.write(val)",
        175: "f.write(val)",
    },
    ("pickledb", "1.6", "pickledb"): {
        108: "await f.write(orjson.dumps(self.db))",
        109: "await asyncio.to_thread(os.replace, temp, self.location)",
        116: "self.db[str(key)] = value",
        123: "return self.db.get(str(key), default)",
    },
    ("semidbm", "0.5.1", "semidbm.db"): {
        44: "os.makedirs(self._dbdir)",
        64: "with _open(filename, 'wb') as f:",
        96: "return read(self._data_fd, size)",
        133: "write(self._data_fd, blob)",
        151: "write(self._data_fd, blob)",
        199: "os.fsync(self._data_fd)",
    },
    ("semidbm", "0.5.1", "semidbm.loaders.mmapload"): {
        44: "raise DBMLoadError()",
    },
    ("sqlitedict", "2.1.0", "sqlitedict"): {
        485: "cursor.execute('PRAGMA synchronous=OFF')",
    },
    ("tinydb", "4.9.0", "tinydb.storages"): {
        32: "with open(path, 'a'):",
        151: "self._handle.write(serialized)",
        157: "os.fsync(self._handle.fileno())",
        161: "self._handle.truncate()",
    },
}
CITED = {
    f"{module.replace('.', '/')}.py:{line}": Citation(distribution, version, module, line, text)
    for (distribution, version, module), lines in _LINES.items()
    for line, text in lines.items()
}
"""Each cited line by the words that the list has for it."""
