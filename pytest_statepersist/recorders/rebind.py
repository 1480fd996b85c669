"""Names that were bound to a function before it was replaced.

Belongs here: finding every holder of an object through the garbage collector and giving it another
object for a time. `from os import replace`, default arguments, `partial`, closures, class
attributes, containers, slots, and local variables of the frames that are running are rewritten; a
holder of another kind is reported, and its owner decides what that means.

Rebindings of one object may be nested: the last one made is the first to be undone, and each gives
back what it found, a class attribute that was a bare function included.
"""

from __future__ import annotations

import gc
import operator
import os
import sys
import types
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from pytest_statepersist.recorders import real, usual
from pytest_statepersist.recorders.callsite import is_internal
from pytest_statepersist.recorders.frames import in_dead_frames, rewrite_frame, running
from pytest_statepersist.recorders.namespaces import Namespace, namespaces_with

__all__ = ["Rebinding", "Unreached"]

_DEPTH = 4
_OWN = __name__.partition(".")[0]
_SUBJECT = f"{_OWN}.reference"
_IGNORED = (types.FrameType, weakref.ReferenceType, types.BuiltinFunctionType, type)
_PLAIN = frozenset({str, bytes, int, float, bool, type(None), types.BuiltinFunctionType})
_DICTS = frozenset({dict, defaultdict, Counter})


@dataclass(slots=True, eq=False)
class _Rebuilt:
    """What was put in the place of an immutable holder, and that holder.

    ``old`` is ``None`` where the holder was the bare attribute of a class. No search goes through
    these: they are instances of this package.
    """

    new: Any
    old: Any


@dataclass(frozen=True, slots=True)
class Unreached:
    """A holder that could not be rewritten, in words, and the names of what it holds.

    ``hidden`` is one that only the count of references shows; modules in C hold `open` like that.
    """

    holder: str
    names: frozenset[str]
    hidden: bool = False


class Rebinding:
    """Gives each holder of an original its replacement from `do` to `undo`.

    ``pairs`` are (original, replacement); ``private`` are containers that must keep what they hold;
    ``fresh`` are the ids of replacements that nobody else held when they were made, just before.
    ``unreached`` names the holders that could not be rewritten.
    """

    def __init__(
        self,
        pairs: list[tuple[Any, Any]],
        *,
        private: Iterable[Any] = (),
        fresh: Iterable[int] = (),
    ) -> None:
        self.unreached: list[Unreached] = []
        self._pairs = pairs
        self._private = list(private)
        self._fresh = frozenset(fresh)
        self._rebuilt: dict[int, _Rebuilt] = {}
        self._searched: set[int] = set()
        self._own = {id(item) for pair in pairs for item in pair}
        self._parts: list[Any] = []
        self._before: dict[int, int] = {}
        self._forward = True

    def do(self) -> None:
        """Give every holder the replacement; an `undo` is due even where this raised."""
        if self not in _in_force:
            _in_force.append(self)
        self._forward = True
        self._run(self._pairs)

    def undo(self) -> None:
        """Give every holder the original back, those too that were made meanwhile.

        Where an exception stopped it, a signal's for example, it can be called again.
        """
        unreached, self.unreached = self.unreached, []
        self._forward = False
        try:
            self._run([(replacement, original) for original, replacement in self._pairs])
        finally:
            self.unreached = unreached
        _in_force[:] = [each for each in _in_force if each is not self]
        self._rebuilt.clear()

    def _run(self, pairs: list[tuple[Any, Any]]) -> None:
        new = {id(old): replacement for old, replacement in pairs}
        below = [each for each in _in_force if each is not self]
        # Anew each time: a class may have got subclasses meanwhile.
        parts = chain.from_iterable(usual.parts(item) for pair in pairs for item in pair)
        self._parts = list({id(part): part for part in parts}.values())
        others = chain.from_iterable(each._own for each in below)
        spaces = namespaces_with(self._own, fresh=self._fresh, others=others)
        private = self._kept(below)
        if self._forward:
            # What holds a replacement before anybody was given it is this package itself.
            shown = [*private, *(namespace for namespace, _ in spaces)]
            self._before = _held_elsewhere([new for _, new in pairs], shown, self._parts)
            shown.clear()
        self._rewrite_spaces(spaces, new)
        for supported in _support_sets():
            self._rewrite(supported, new)
        frames, elsewhere = running(new)
        self.unreached.extend(Unreached(*each) for each in elsewhere)
        while frames:
            rewrite_frame(frames.pop(), new)
        for owner in usual.owners():
            self._rewrite_owner(owner, new)
        owner = None
        for table in usual.tables():
            self._rewrite_dict(table, new)
        # What is in ``new`` was counted before; on the way back it is in the reversed pairs.
        known, ours = self._before, dict[int, int]()
        if self._forward:
            known = {id(old): usual.hidden(old) for old, _ in pairs}
            for each in below:  # less the one reference that was counted in its ``new``
                ours.update((key, count - 1) for key, count in each._before.items())
            known.update(ours)
        private += [space for space, name in spaces if _is_own_name(name)]
        olds, held = self._still_held(pairs, private, known)
        if self._forward:  # what was found once is searched for again on the way back
            self._searched.update(id(new[id(old)]) for old in olds)
        if olds:
            skip = _own_containers(self._pairs) | {id(item) for item in self._private}
            skip |= {id(pairs), id(self._pairs), id(self.__dict__), id(self._private)}
            skip |= {id(pair) for pair in pairs}
            skip |= {id(pair) for each in below for pair in each._pairs}
            skip |= set(map(id, _remembered()))
            if not self._forward:
                # Where making one anew was stopped, what was made before it is still in its place.
                skip -= self._rebuilt.keys()
            names = {id(old): frozenset([getattr(old, "__name__", "?")]) for old in olds}
            self._replace(olds, new, names, skip, _DEPTH)
            olds.clear()
            if self._forward:
                held = _held_elsewhere([old for old, _ in self._pairs], private, self._parts)
        if self._forward:
            self._hidden(held, ours)

    def _kept(self, below: list[Rebinding]) -> list[Any]:
        """Return the containers of this package that hold originals and replacements by nature."""
        pairs = [pair for each in (self, *below) for pair in each._pairs]
        return [*self._private, *pairs, vars(real.system), *(each._parts for each in below)]

    def _rewrite_spaces(self, spaces: list[Namespace], new: dict[int, Any]) -> None:
        for namespace, name in spaces:
            if not _is_own_name(name):
                self._rewrite(namespace, new)

    def _still_held(
        self, pairs: list[tuple[Any, Any]], private: list[Any], known: dict[int, int]
    ) -> tuple[list[Any], dict[int, int]]:
        """Return what a search must look for, and how often each is held by what is not known."""
        held = _held_elsewhere([old for old, _ in pairs], private, self._parts)
        olds = [
            old
            for old, _ in pairs
            if held[id(old)] > known.get(id(old), 0) or id(old) in self._searched
        ]
        return olds, held

    def _hidden(self, held: dict[int, int], ours: dict[int, int]) -> None:
        """Report what is still held: frozen objects, or variables of C, that no search shows.

        ``ours`` is how often this package itself holds a replacement of a layer below.
        """
        known: frozenset[str] = frozenset()
        known = known.union(*(each.names for each in self.unreached))
        for old, _ in self._pairs:
            own = frozenset([getattr(old, "__name__", "?")])
            count = held[id(old)] - ours.get(id(old), 0)
            if count <= 0 or isinstance(old, type) or own <= known:
                continue
            if count > usual.hidden(old):  # to look for frames is to search the heap
                count -= in_dead_frames(old)
            if count > 0:
                usual.note_hidden(old, count)
                holder = "something that the garbage collector does not show"
                self.unreached.append(Unreached(holder, own, hidden=True))

    def _replace(
        self,
        olds: list[Any],
        new: dict[int, Any],
        names: dict[int, frozenset[str]],
        skip: set[int],
        depth: int,
    ) -> None:
        fresh: dict[int, Any] = {}
        rebuilt: list[Any] = []
        dicts: list[dict[Any, Any]] = []
        inherited: dict[int, frozenset[str]] = {}
        skip = skip | {id(olds), id(new), id(fresh), id(rebuilt), id(dicts)}
        marker = object()
        holders = gc.get_referrers(*olds, marker)
        skip |= {id(holders), *_own_cells(holders)}
        for holder in holders:
            if id(holder) in skip or isinstance(holder, _IGNORED) or _is_own(holder):
                continue
            if type(holder) is tuple and holder and holder[-1] is marker:
                continue  # the arguments of the search itself
            if isinstance(holder, tuple | frozenset | staticmethod | classmethod):
                value = self._remembered(holder, new)
                if value is not None:
                    fresh[id(holder)] = value
                    rebuilt.append(holder)
                    inherited[id(holder)] = _held_names(holder, names)
            elif not self._rewrite(holder, new):
                if _calls(holder, olds):
                    self._cannot(holder, names)
            elif type(holder) is dict and "__module__" not in holder:
                dicts.append(holder)
            elif hasattr(holder, "__dict__"):
                usual.note(holder)
        del holders
        usual.note_owners(dicts)
        dicts.clear()
        if rebuilt and depth > 0:
            self._replace(rebuilt, fresh, inherited, skip, depth - 1)
        else:
            for holder in rebuilt:
                self._cannot(holder, inherited)

    def _remembered(self, holder: Any, new: dict[int, Any]) -> Any:
        """Return what takes the place of an immutable holder; on the way back what was there."""
        known = None if self._forward else self._rebuilt.get(id(holder))
        if known is not None and known.old is None:
            return new.get(id(holder.__func__))
        if known is not None:
            while known is not None and known.old is not None:  # one that was rebuilt twice
                holder = known.old
                known = self._rebuilt.get(id(holder))
            return holder
        value = _rebuilt(holder, new)
        # To keep a holder keeps all that it holds: what would otherwise be gone is not kept, and
        # an equal holder is made on the way back.
        if value is not None and self._is_plain(holder):
            self._rebuilt[id(value)] = _Rebuilt(value, holder)
        return value

    def _is_plain(self, holder: Any) -> bool:
        """Say whether an immutable holder holds nothing whose end anybody could notice."""
        if isinstance(holder, staticmethod | classmethod):
            return True
        return all(
            type(item) in _PLAIN
            or id(item) in self._own
            or (isinstance(item, types.FunctionType) and item.__closure__ is None)
            or (isinstance(item, tuple | frozenset) and self._is_plain(item))
            for item in holder
        )

    def _cannot(self, holder: Any, names: dict[int, frozenset[str]]) -> None:
        held = _held_names(holder, names) | names.get(id(holder), frozenset())
        self.unreached.append(Unreached(f"{type(holder).__name__} {_short(holder)}", held))

    def _rewrite(self, holder: Any, new: dict[int, Any]) -> bool:
        """Replace what a mutable holder holds; false where its kind is not known."""
        if isinstance(holder, dict):
            return self._rewrite_dict(holder, new)
        if isinstance(holder, list | deque):
            for index, item in enumerate(holder):
                if id(item) in new:
                    holder[index] = new[id(item)]
            return True
        if isinstance(holder, set):
            for item in [item for item in holder if id(item) in new]:
                holder.add(new[id(item)])
                holder.discard(item)
            return True
        if isinstance(holder, types.CellType):
            try:
                holder.cell_contents = new.get(id(holder.cell_contents), holder.cell_contents)
            except ValueError:  # an empty cell
                pass
            return True
        if isinstance(holder, partial):
            return _rewrite_partial(holder, new)
        if isinstance(holder, types.FunctionType):
            return _rewrite_function(holder, new)
        for attribute in ("gi_frame", "cr_frame", "ag_frame"):
            frame = getattr(holder, attribute, None)
            if isinstance(frame, types.FrameType):
                return rewrite_frame(frame, new)
        return _rewrite_object(holder, new)

    def _rewrite_owner(self, owner: Any, new: dict[int, Any]) -> None:
        """Do what a search would do with a function or an instance that it would find."""
        if isinstance(owner, type):
            self._rewrite_class(owner, new)
            return
        if not isinstance(owner, types.FunctionType):
            self._rewrite(owner, new)
            attributes = getattr(owner, "__dict__", None)
            for value in list(attributes.values()) if type(attributes) is dict else ():
                if type(value) is dict and "__spec__" not in value:  # modules are done by name
                    self._rewrite_dict(value, new)
            return
        for cell in owner.__closure__ or ():
            self._rewrite(cell, new)
            with suppress(ValueError):  # an empty cell
                if type(cell.cell_contents) is dict:
                    self._rewrite_dict(cell.cell_contents, new)
        if owner.__kwdefaults__:
            self._rewrite_dict(owner.__kwdefaults__, new)
        self._rewrite_dict(vars(owner), new)  # functools.wraps keeps there what it wraps
        self._rewrite_defaults(owner, new)

    def _rewrite_class(self, owner: type, new: dict[int, Any]) -> None:
        """Replace attributes; a wrapper that something else holds as well is left to a search."""
        for key in list(vars(owner)):
            value = vars(owner)[key]
            if id(value) in new:
                self._set_attribute(owner, key, value, new[id(value)])
            elif type(value) is dict:
                if not new.keys().isdisjoint(map(id, value.values())):
                    self._rewrite_dict(value, new)
            elif isinstance(value, staticmethod | classmethod) and id(value.__func__) in new:
                # The class, the variable here, the call below, and what remembers it.
                known = 3 + _remembering(value)
                alone = sys.getrefcount(value) == known
                replacement = self._remembered(value, new) if alone else None
                if replacement is not None:
                    setattr(owner, key, replacement)
                    if not self._forward:
                        self._rebuilt.pop(id(value), None)

    def _set_attribute(self, owner: type, key: str, value: Any, replacement: Any) -> None:
        if isinstance(replacement, types.FunctionType) and not isinstance(
            value, types.FunctionType | staticmethod
        ):
            # A function in C is no method; one in Python must be kept from becoming one.
            replacement = staticmethod(replacement)
            self._rebuilt[id(replacement)] = _Rebuilt(replacement, None)
        setattr(owner, key, replacement)
        usual.note(owner)

    def _rewrite_defaults(self, function: types.FunctionType, new: dict[int, Any]) -> None:
        """Rebuild the tuple, unless something else holds it as well: that takes a search."""
        defaults = function.__defaults__
        if defaults is not None and not new.keys().isdisjoint(map(id, defaults)):
            # The function, the variable here, the call below, and what remembers it.
            known = 3 + _remembering(defaults)
            alone = sys.getrefcount(defaults) == known
            value = self._remembered(defaults, new) if alone else None
            if value is not None:
                function.__defaults__ = value
                if not self._forward:
                    self._rebuilt.pop(id(defaults), None)

    def _rewrite_dict(self, holder: dict[Any, Any], new: dict[int, Any]) -> bool:
        owner = _class_of(holder) if "__module__" in holder else None
        for key, value in list(holder.items()):
            if id(value) not in new:
                continue
            if owner is None:
                holder[key] = new[id(value)]
                continue
            try:
                self._set_attribute(owner, key, value, new[id(value)])
            except (AttributeError, TypeError):
                return False
        if not new.keys().isdisjoint(map(id, holder)):
            _rewrite_keys(holder, new)
        return True


_in_force: list[Rebinding] = []
"""Those that were done and not undone, in the order in which they were done."""


def _rewrite_keys(holder: dict[Any, Any], new: dict[int, Any]) -> None:
    """Replace keys in their places. Nothing is ever missing, whatever signal or thread comes."""
    if type(holder) in _DICTS:
        items = {new.get(id(key), key): value for key, value in holder.items()}
        refill = (partial(dict.clear, holder), partial(dict.update, holder, items))
        deque(map(operator.call, refill), maxlen=0)  # both in one call in C
        return
    for key in list(holder):
        replacement = new.get(id(key))
        if replacement is not None:
            holder[replacement] = holder[key]
            del holder[key]
        if isinstance(holder, OrderedDict):
            holder.move_to_end(key if replacement is None else replacement)


def _support_sets() -> list[set[Any]]:
    """Return `os.supports_dir_fd` and its like, which hold functions."""
    return [value for value in vars(os).values() if isinstance(value, set)]


def _remembering(holder: Any) -> int:
    """Count those who made an immutable holder, and so hold it themselves."""
    return sum(id(holder) in each._rebuilt for each in _in_force)


def _remembered() -> list[Any]:
    """Return the immutable holders that have been replaced and are only waiting to come back."""
    return [
        known.old
        for each in _in_force
        for known in each._rebuilt.values()
        if known.old is not None
    ]


def _held_elsewhere(
    objects: list[Any], private: list[Any], parts: list[Any]
) -> dict[int, int]:
    """Count the references to each object that are not in ``private``, containers or namespaces.

    Searching the whole heap is slow, and hardly ever is there anything to find. What is found here
    by name or by the count of references needs no search. ``objects`` is the list to count for,
    ``parts`` are objects that may hold them without being containers.
    """
    ids = {id(item) for item in objects}
    known = dict.fromkeys(ids, 0)
    for container in chain(
        _support_sets(), private, [parts], map(gc.get_referents, chain(_remembered(), parts))
    ):
        if isinstance(container, dict):
            container = container.values()
        if not ids.isdisjoint(map(id, container)):
            for key in map(id, container):
                if key in ids:
                    known[key] += 1
    container = None
    # The list itself and the call below hold each of them as well: an object that nothing else
    # holds shows by how much.
    objects.append(object())
    counts = [sys.getrefcount(item) for item in objects]
    plain = counts.pop()
    objects.pop()
    return {
        id(item): count - known[id(item)] - plain
        for item, count in zip(objects, counts, strict=True)
    }


def _own_containers(pairs: list[tuple[Any, Any]]) -> set[int]:
    """Return the containers by which this package itself holds the originals."""
    found: set[int] = {id(vars(real.system))}
    for name, module in list(sys.modules.items()):
        if _is_own_name(name):
            found.add(id(vars(module)))
    for pair in pairs:
        found.add(id(pair))
        for item in pair:
            found.update(map(id, usual.parts(item)))
            if isinstance(item, types.FunctionType):
                found.add(id(item.__closure__))
    return found


def _own_cells(holders: list[Any]) -> set[int]:
    """Return the closure cells among the holders that belong to functions of this package."""
    found: set[int] = set()
    cells = [holder for holder in holders if isinstance(holder, types.CellType)]
    for function in usual.functions_with(cells):
        if _is_own(function):
            found.update(map(id, function.__closure__ or ()))
        else:
            usual.note(function)
    return found


def _is_own(holder: Any) -> bool:
    owner = holder if isinstance(holder, types.FunctionType | type) else type(holder)
    return _is_own_name(str(getattr(owner, "__module__", "")))


def _is_own_name(module: str) -> bool:
    return module.startswith(_OWN) and not module.startswith(_SUBJECT)


def _held_names(holder: Any, names: dict[int, frozenset[str]]) -> frozenset[str]:
    none: frozenset[str] = frozenset()
    return none.union(*(names.get(id(item), none) for item in gc.get_referents(holder)))


def _calls(holder: Any, olds: list[Any]) -> bool:
    """Say whether a holder matters: not a type's instance or method, nor the library's own."""
    if isinstance(holder, types.ModuleType):
        # What a module in C keeps for itself; those of the standard library only read with it.
        file = getattr(holder, "__file__", None)
        if file is None or is_internal(file):
            return False
    held = {id(old) for old in olds if not isinstance(old, type)}
    return any(id(item) in held for item in gc.get_referents(holder))


def _rebuilt(holder: Any, new: dict[int, Any]) -> Any:
    """Return an immutable holder with its items replaced, ``None`` if it holds none."""
    if isinstance(holder, staticmethod | classmethod):
        inner = new.get(id(holder.__func__))
        return None if inner is None else type(holder)(inner)
    if all(isinstance(item, type) for item in holder):
        return None  # bases, or classes to compare with: the real type is right for both
    items = [new.get(id(item), item) for item in holder]
    if all(a is b for a, b in zip(items, holder, strict=True)):
        return None
    if isinstance(holder, tuple) and type(holder) is not tuple:
        make: Callable[..., Any] | None = getattr(type(holder), "_make", None)
        return None if make is None else make(items)
    return type(holder)(items)


def _rewrite_partial(holder: partial[Any], new: dict[int, Any]) -> bool:
    function = new.get(id(holder.func), holder.func)
    arguments = new.get(id(holder.args), holder.args)
    state = (function, arguments, holder.keywords, vars(holder) or None)
    holder.__setstate__(state)  # type: ignore[attr-defined]
    return True


def _rewrite_function(function: types.FunctionType, new: dict[int, Any]) -> bool:
    defaults = function.__defaults__
    if defaults is not None and id(defaults) in new:
        function.__defaults__ = new[id(defaults)]
        usual.note(function)
    closure = function.__closure__
    return closure is None or id(closure) not in new


def _class_of(namespace: dict[Any, Any]) -> type | None:
    for holder in gc.get_referrers(namespace):
        if isinstance(holder, type) and any(item is namespace for item in gc.get_referents(holder)):
            return holder
    return None


def _rewrite_object(holder: Any, new: dict[int, Any]) -> bool:
    """Rewrite slots, and from 3.11 on attributes, which may live in the object without a dict."""
    found = False
    for base in type(holder).__mro__:
        for member in vars(base).values():
            if isinstance(member, types.MemberDescriptorType):
                try:
                    replacement = new.get(id(member.__get__(holder)))
                    if replacement is not None:
                        member.__set__(holder, replacement)
                        found = True
                except (AttributeError, TypeError):
                    continue
    attributes = getattr(holder, "__dict__", None)
    if isinstance(attributes, dict):
        for name, value in list(attributes.items()):
            if id(value) in new:
                attributes[name] = new[id(value)]
                found = True
    return found


def _short(holder: Any) -> str:
    try:
        text = repr(holder)
    except Exception:  # the subject's own repr
        text = object.__repr__(holder)
    return text if len(text) <= 80 else text[:77] + "..."
