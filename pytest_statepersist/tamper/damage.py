"""Damaged bytes, one case at a time, each with a label.

Belongs here: pure generators from valid files to damaged ones. Rules:

1. Nothing here reads or writes a file, and the given bytes are never changed.
2. A case differs from the original, or it is not made: what is equal proves nothing.
3. The same files, sweep and seed give the same cases in the same order.
4. What is only sampled, or cannot be made from these files, is told by `gaps`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations
from typing import TypeVar

from pytest_statepersist.errors import UserError

__all__ = ["Damage", "Sweep", "Tampering", "cases", "gaps", "tampering_of", "tamperings"]


class Damage(Enum):
    """The kinds of damage."""

    FLIP = "one bit flipped"
    TRUNCATE = "cut off"
    EXTEND = "bytes appended"
    SWAP_BLOCKS = "two blocks exchanged"
    SPLICE = "the head of one valid file on the tail of another"
    ROLL_BACK = "replaced by an older valid file"
    ROLL_BACK_ALL = "all files replaced by an older valid state"
    EXTREME = "a header field at an extreme"
    EMPTY = "emptied"
    MISSING = "removed"
    SWAP_NAMES = "two files exchanged"


@dataclass(frozen=True, slots=True)
class Tampering:
    """One damaged state: what changed (``None`` for a removed file), and a label in words."""

    label: str
    damage: Damage
    files: Mapping[str, bytes | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """How much damage to do.

    Files of up to ``small`` bytes get every bit flipped and every truncation; of larger ones
    ``flips`` bits and ``cuts`` lengths are drawn, the first and last 64 bytes among them as far
    as two thirds of the number go. ``header`` is the number of leading bytes in which fields are
    set to extremes; ``splices`` and ``swaps`` bound the cases for each pair of files and each
    block size; ``skip`` leaves kinds out. Raises `UserError` for negative numbers.
    """

    small: int = 2048
    flips: int = 4096
    cuts: int = 1024
    header: int = 64
    splices: int = 64
    swaps: int = 32
    skip: frozenset[Damage] = frozenset()

    def __post_init__(self) -> None:
        for name in ("small", "flips", "cuts", "header", "splices", "swaps"):
            if getattr(self, name) < 0:
                raise UserError(f"Sweep.{name} counts something, so it cannot be negative")
        object.__setattr__(self, "skip", frozenset(self.skip))


Made = Iterator[tuple[dict[str, bytes | None], int, int]]
"""Cases of one kind: the changed files, and two numbers that locate the damage."""
Group = tuple[Damage, str, Made]
"""The cases of one kind on one file; plain tuples, because a sweep makes thousands of them."""

_T = TypeVar("_T")
_EDGE = 64
_BLOCKS = (16, 512, 4096)
_WIDTHS = (1, 2, 4, 8)
_TAILS = (
    "a zero byte", "a byte 0xff", "a line feed", "a space", "16 zero bytes", "16 drawn bytes",
    "4096 zero bytes", "its last byte", "its last 16 bytes", "itself",
)  # fmt: skip


def tamperings(
    files: Mapping[str, bytes],
    *,
    older: Sequence[Mapping[str, bytes]] = (),
    sweep: Sweep | None = None,
    seed: int = 0,
) -> Iterator[Tampering]:
    """Yield every damaged state of these files, with its label.

    ``older`` are earlier valid states of the same files, for splices and roll-backs. Raises
    `UserError` where there is no file to damage.
    """
    for damage, name, made in cases(files, older=older, sweep=sweep or Sweep(), seed=seed):
        for changed, a, b in made:
            yield tampering_of(damage, name, changed, a, b, files)


def tampering_of(
    damage: Damage,
    name: str,
    changed: Mapping[str, bytes | None],
    a: int,
    b: int,
    files: Mapping[str, bytes],
) -> Tampering:
    """Return a case with its label; ``a`` and ``b`` are the two numbers that its maker gave."""
    size = len(files.get(name, b""))
    match damage:
        case Damage.FLIP:
            label = f"{name}: bit {b} of byte {a} (of {size}) flipped"
        case Damage.TRUNCATE:
            label = f"{name}: cut off after {a} of {size} bytes"
        case Damage.EXTEND:
            label = f"{name}: {_TAILS[a]} appended to its {size} bytes"
        case Damage.SWAP_BLOCKS:
            label = f"{name}: the {_BLOCKS[b % 4]}-byte blocks {a} and {b // 4} exchanged"
        case Damage.SPLICE:
            first, then = ("its own", "another's") if b % 2 == 0 else ("another's", "its own")
            label = f"{name}: {first} bytes up to {a}, then {then} (valid file #{b // 2})"
        case Damage.ROLL_BACK:
            label = f"{name}: replaced by its older valid version #{b}"
        case Damage.ROLL_BACK_ALL:
            label = f"all files replaced by the older valid state #{b}"
        case Damage.EXTREME:
            field = _EXTREMES[b]
            label = f"{name}: bytes {a} to {a + len(field) - 1} set to {field.hex(' ')}"
        case Damage.EMPTY:
            label = f"{name}: emptied (it had {size} bytes)"
        case Damage.MISSING:
            label = f"{name}: removed"
        case Damage.SWAP_NAMES:
            label = " and ".join(changed) + ": contents exchanged"
    return Tampering(label, damage, changed)


def cases(
    files: Mapping[str, bytes],
    *,
    older: Sequence[Mapping[str, bytes]] = (),
    sweep: Sweep,
    seed: int,
) -> Iterator[Group]:
    """Yield every case, in groups of one file and one kind of damage."""
    if not files:
        raise UserError("there is no file to damage: give the files that a save has just written")
    for name in sorted(files):
        data = bytes(files[name])
        # One generator for each file and kind: leaving a kind out does not change the others.
        for damage, make in _MAKERS:
            if damage not in sweep.skip:
                draw = random.Random(f"{seed}/{name}/{damage.name}")
                yield damage, name, make(name, data, files, older, sweep, draw)
    if Damage.SWAP_NAMES not in sweep.skip:
        draw = random.Random(f"{seed}/names")
        yield Damage.SWAP_NAMES, min(files), _swapped_names(files, sweep, draw)
    if Damage.ROLL_BACK_ALL not in sweep.skip:
        yield Damage.ROLL_BACK_ALL, min(files), _all_rolled_back(files, older)


def gaps(
    files: Mapping[str, bytes], *, older: Sequence[Mapping[str, bytes]], sweep: Sweep
) -> tuple[str, ...]:
    """Say in words which damage is sampled, or not done at all."""
    lines = []
    for name in sorted(files):
        size = len(files[name])
        if size > sweep.small and Damage.FLIP not in sweep.skip:
            lines.append(f"{name}: {min(sweep.flips, size * 8):,} of {size * 8:,} bits flipped")
        if size > sweep.small and Damage.TRUNCATE not in sweep.skip:
            lines.append(f"{name}: {min(sweep.cuts, size):,} of {size:,} truncations made")
    if not older and Damage.ROLL_BACK not in sweep.skip:
        lines.append("roll-back: no older files were given (older=…)")
    if len(files) < 2 and not older and Damage.SPLICE not in sweep.skip:
        lines.append("splices: they need a second valid file (older=…)")
    if len(files) < 2 and Damage.SWAP_NAMES not in sweep.skip:
        lines.append("swapped names: they need a second file")
    lines += [f"{damage.name}: left out on request" for damage in Damage if damage in sweep.skip]
    return tuple(lines)


# --- one maker for each kind ------------------------------------------------------------------


def _flips(
    name: str, data: bytes, files: Mapping[str, bytes], older: object, sweep: Sweep,
    draw: random.Random,
) -> Made:  # fmt: skip
    buffer = bytearray(data)
    places: Sequence[int] = range(len(data) * 8)
    if len(data) > sweep.small:
        places = _edges_and_some(len(data) * 8, _EDGE * 8, sweep.flips, draw)
    for place in places:
        at = place >> 3
        buffer[at] ^= 1 << (place & 7)
        yield {name: bytes(buffer)}, at, place & 7
        buffer[at] = data[at]


def _truncations(
    name: str, data: bytes, files: Mapping[str, bytes], older: object, sweep: Sweep,
    draw: random.Random,
) -> Made:  # fmt: skip
    lengths: Sequence[int] = range(len(data))
    if len(data) > sweep.small:
        lengths = _edges_and_some(len(data), _EDGE, sweep.cuts, draw)
    for length in lengths:
        if length:  # the cut to nothing is the emptied file
            yield {name: data[:length]}, length, 0


def _extensions(
    name: str, data: bytes, files: Mapping[str, bytes], older: object, sweep: Sweep,
    draw: random.Random,
) -> Made:  # fmt: skip
    tails = [b"\0", b"\xff", b"\n", b" ", bytes(16), draw.randbytes(16), bytes(4096)]
    tails += [data[-1:], data[-16:], data]
    for number, tail in enumerate(tails):
        if tail and tail not in tails[:number]:
            yield {name: data + tail}, number, 0


def _block_swaps(
    name: str, data: bytes, files: Mapping[str, bytes], older: object, sweep: Sweep,
    draw: random.Random,
) -> Made:  # fmt: skip
    for kind, size in enumerate(_BLOCKS):
        count = len(data) // size
        pairs: Sequence[tuple[int, int]]
        if count * (count - 1) // 2 <= sweep.swaps:
            pairs = list(combinations(range(count), 2))
        else:
            near = [(i, i + 1) for i in range(min(count - 1, sweep.swaps // 2))]
            far = [sorted(draw.sample(range(count), 2)) for _ in range(sweep.swaps - len(near))]
            pairs = list(dict.fromkeys([*near, *((a, b) for a, b in far)]))
        for a, b in pairs:
            one, two = data[a * size : (a + 1) * size], data[b * size : (b + 1) * size]
            if one != two:
                middle = data[(a + 1) * size : b * size]
                swapped = data[: a * size] + two + middle + one + data[(b + 1) * size :]
                yield {name: swapped}, a, b * 4 + kind


def _splices(
    name: str, data: bytes, files: Mapping[str, bytes], older: Sequence[Mapping[str, bytes]],
    sweep: Sweep, draw: random.Random,
) -> Made:  # fmt: skip
    donors = [bytes(files[other]) for other in sorted(files) if other != name]
    donors += [bytes(old[key]) for old in older for key in sorted(old)]
    seen = {data}
    for number, donor in enumerate(dict.fromkeys(donors)):
        if donor == data:
            continue
        shortest = min(len(data), len(donor))
        for cut in _sample(range(1, shortest), sweep.splices, draw):
            for way, mixed in enumerate((data[:cut] + donor[cut:], donor[:cut] + data[cut:])):
                if mixed not in seen and mixed != donor:
                    if len(data) <= sweep.small:
                        seen.add(mixed)
                    yield {name: mixed}, cut, number * 2 + way


def _roll_backs(
    name: str, data: bytes, files: Mapping[str, bytes], older: Sequence[Mapping[str, bytes]],
    sweep: Sweep, draw: random.Random,
) -> Made:  # fmt: skip
    for number, old in enumerate(older):
        if name in old and old[name] != data:
            yield {name: bytes(old[name])}, 0, number


def _header_extremes(
    name: str, data: bytes, files: Mapping[str, bytes], older: object, sweep: Sweep,
    draw: random.Random,
) -> Made:  # fmt: skip
    for at in range(min(sweep.header, len(data))):
        for number, field in enumerate(_EXTREMES):
            end = at + len(field)
            if end <= len(data) and data[at:end] != field:
                yield {name: data[:at] + field + data[end:]}, at, number


def _emptied(
    name: str, data: bytes, files: Mapping[str, bytes], older: object, sweep: Sweep,
    draw: random.Random,
) -> Made:  # fmt: skip
    if data:
        yield {name: b""}, 0, 0


def _removed(
    name: str, data: bytes, files: Mapping[str, bytes], older: object, sweep: Sweep,
    draw: random.Random,
) -> Made:  # fmt: skip
    yield {name: None}, 0, 0


def _swapped_names(files: Mapping[str, bytes], sweep: Sweep, draw: random.Random) -> Made:
    pairs = [(a, b) for a, b in combinations(sorted(files), 2) if files[a] != files[b]]
    for one, two in _sample(pairs, sweep.swaps * 2, draw):
        yield {one: bytes(files[two]), two: bytes(files[one])}, 0, 0


def _all_rolled_back(files: Mapping[str, bytes], older: Sequence[Mapping[str, bytes]]) -> Made:
    for number, old in enumerate(older):
        names = sorted({*files, *old})
        changed = {name: old.get(name) for name in names if old.get(name) != files.get(name)}
        # One changed file is the roll-back of that file, which has its own kind.
        if len(changed) > 1:
            yield changed, 0, number


_MAKERS = (
    (Damage.FLIP, _flips),
    (Damage.TRUNCATE, _truncations),
    (Damage.EXTEND, _extensions),
    (Damage.SWAP_BLOCKS, _block_swaps),
    (Damage.SPLICE, _splices),
    (Damage.ROLL_BACK, _roll_backs),
    (Damage.EXTREME, _header_extremes),
    (Damage.EMPTY, _emptied),
    (Damage.MISSING, _removed),
)


def _extreme_fields() -> tuple[bytes, ...]:
    fields: list[bytes] = []
    for width in _WIDTHS:
        top = 1 << (8 * width)
        for value in (0, 1, top // 2 - 1, top // 2, top - 2, top - 1):
            fields += [value.to_bytes(width, "big"), value.to_bytes(width, "little")]
    return tuple(dict.fromkeys(fields))


_EXTREMES = _extreme_fields()


def _edges_and_some(count: int, edge: int, wanted: int, draw: random.Random) -> list[int]:
    """Return ``wanted`` of ``count`` places: both edges first, the rest drawn between them."""
    if wanted >= count:
        return list(range(count))
    edge = min(edge, wanted // 3)  # the values are between them
    inner = range(edge, count - edge)
    middle = draw.sample(inner, min(len(inner), max(0, wanted - 2 * edge)))
    return [*range(edge), *sorted(middle), *range(count - edge, count)]


def _sample(items: Sequence[_T], wanted: int, draw: random.Random) -> Sequence[_T]:
    """Return all items, or a drawn sample of them in their order."""
    if len(items) <= wanted:
        return items
    return [items[i] for i in sorted(draw.sample(range(len(items)), wanted))]
