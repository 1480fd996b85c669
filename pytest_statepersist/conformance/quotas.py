"""Checks with a quota: what would exceed it is refused, and the refusal harms nothing.

Belongs here: filling a store up. The quota is a bound on about all that is stored, so a store may
refuse earlier for what it needs itself, and later for what it compresses, within these bounds.
"""

from __future__ import annotations

from pathlib import Path

from pytest_statepersist.adapter import OpenStore
from pytest_statepersist.conformance.base import BaseBench, Content

__all__ = ["QuotaChecks"]

_QUOTA = 20_000
_LETTERS = 3_000
_MOST = 4 * _QUOTA // _LETTERS
"""So many values fit into no store of that quota, however well it packs their letters."""


class QuotaChecks(BaseBench):
    """What a store does that may grow no more."""

    def check_quota(self) -> None:
        """Save until one is refused; everything before is there, also after a reopening."""
        directory = self.place()
        store = self._limited(directory)
        try:
            kept = self._fill_up(store)
            assert self.read(store, kept) == kept
        finally:
            store.close()
        self._check_reopened(directory, kept)

    def check_quota_overwrite(self) -> None:
        """Replace a value by one that cannot fit; the old one stays, also after a reopening."""
        directory = self.place()
        store = self._limited(directory)
        kept = {"key": self.value(1), "other": self.value(2)}
        try:
            for key, value in kept.items():
                store.save(key, value)
            try:
                store.save("key", {"text": self.noise(_MOST * _LETTERS)})
            except self.adapter.full:
                pass
            else:
                raise AssertionError(
                    f"{_MOST * _LETTERS} letters were saved under a quota of {_QUOTA} bytes"
                )
            found = self.read(store, kept)
            assert found == kept, f"a refused save left {found!r}"
            store.save("other", self.value(3))
        finally:
            store.close()
        self._check_reopened(directory, kept | {"other": self.value(3)})

    def check_quota_is_freed(self) -> None:
        """Fill a store up, delete what it holds, and fill it up again as far as before."""
        directory = self.place()
        store = self._limited(directory)
        try:
            first = self._fill_up(store)
            for key in first:
                store.delete(key)
            again = self._fill_up(store)
        finally:
            store.close()
        assert len(again) >= len(first), (
            f"{len(first)} values fitted into the empty store, and {len(again)} after all of "
            "them were deleted"
        )

    def _limited(self, directory: Path) -> OpenStore:
        return OpenStore(self.adapter, self.adapter.open_with_quota(directory, _QUOTA))

    def _fill_up(self, store: OpenStore) -> Content:
        kept: Content = {}
        for number in range(_MOST):
            key, value = f"key-{number}", {"text": self.noise(_LETTERS + number)}
            try:
                store.save(key, value)
            except self.adapter.full as error:
                if not kept:
                    raise AssertionError(f"nothing fits into {_QUOTA} bytes") from error
                return kept
            kept[key] = value
        raise AssertionError(
            f"{_MOST} values of {_LETTERS} letters were saved under a quota of {_QUOTA} bytes"
        )

    def _check_reopened(self, directory: Path, kept: Content) -> None:
        store = self._limited(directory)
        try:
            found = self.read(store, kept)
        finally:
            store.close()
        assert found == kept, f"after a reopening the store holds {found!r}"
