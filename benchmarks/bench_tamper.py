"""What a tamper sweep costs beside the bare loads of the same damaged bytes: at most 1.2 times.

The subject is a 1 KB envelope (header, nonce, AES-256-GCM with the header as associated data) with
a raw key: a load takes microseconds, so that the sweep's own cost shows. The damage is each of the
8,192 bits flipped and each of the 1,024 truncations (0 to 1,023 bytes). The bare loads are the same
damaged contents, made beforehand, in a plain loop. Run with ``pytest benchmarks/bench_tamper.py``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pytest_statepersist.tamper import Damage, Passing, Sweep, check_integrity, tamperings

BOUND = 1.2
ROUNDS = 15
KEY = os.urandom(32)
MAGIC = b"BENCH001"
HEADER = len(MAGIC) + 12
ONLY = Sweep(skip=frozenset(set(Damage) - {Damage.FLIP, Damage.TRUNCATE, Damage.EMPTY}))


class Damaged(Exception):
    """The envelope is not what was saved."""


def seal(value: bytes) -> bytes:
    header = MAGIC + os.urandom(12)
    return header + AESGCM(KEY).encrypt(header[len(MAGIC) :], value, header)


def load(files: Mapping[str, bytes]) -> bytes:
    data = files["state"]
    header = data[:HEADER]
    if len(data) < HEADER + 16 or not header.startswith(MAGIC):
        raise Damaged("not an envelope")
    try:
        return AESGCM(KEY).decrypt(header[len(MAGIC) :], data[HEADER:], header)
    except InvalidTag as error:
        raise Damaged("the tag does not fit") from error


FILES = {"state": seal(os.urandom(1024 - HEADER - 16))}


def sweep() -> int:
    report = check_integrity(load, FILES, expect=Damaged, passing=Passing.MAPPING, sweep=ONLY)
    assert report.ok is True
    return report.cases


def bare(damaged: list[dict[str, bytes]]) -> int:
    count = 0
    for files in damaged:
        try:
            load(files)
        except Damaged:
            count += 1
    return count


def test_a_sweep_costs_little_beside_its_loads(benchmark: Any) -> None:
    damaged: list[dict[str, bytes]] = []
    for case in tamperings(FILES, sweep=ONLY):
        data = case.files["state"]
        assert data is not None
        damaged.append({"state": data})
    assert len(FILES["state"]) == 1024
    assert len(damaged) == 8192 + 1024 == sweep() == bare(damaged)
    # The best of each, taken side by side: what else the machine does can only add.
    swept, loaded = [], []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        sweep()
        middle = time.perf_counter()
        bare(damaged)
        swept.append(middle - begun)
        loaded.append(time.perf_counter() - middle)
    ratio = min(swept) / min(loaded)
    benchmark.extra_info["ratio to bare loads"] = round(ratio, 3)
    benchmark.pedantic(sweep, rounds=5)
    assert ratio <= BOUND, f"the sweep costs {ratio:.2f} times its loads, bound {BOUND}"
