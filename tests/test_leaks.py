"""The leak, nonce and permission scans: what each must find, and what each must let pass."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import random
import zipfile
import zlib
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist.core.tree import Directory, File, Tree
from pytest_statepersist.errors import BlindSpot, CrashConsistencyError, UserError
from pytest_statepersist.leaks import (
    ModeEvent,
    Sealed,
    scan_leaks,
    scan_nonces,
    scan_permissions,
)

SECRET = "canary: Grüße from 1f9c?>~"
RAW = SECRET.encode()
NOISE = random.Random(5).randbytes(700)


def zstd(data: bytes) -> bytes:
    try:
        module = import_module("compression.zstd")
    except ImportError:
        module = import_module("backports.zstd")
    packed = module.compress(data)
    assert isinstance(packed, bytes)
    return packed


def zipped(data: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("member.txt", data)
    return out.getvalue()


def raw_and_more(data: bytes) -> bytes:
    return NOISE + data + NOISE


FORMS: dict[str, bytes] = {
    "plain": RAW,
    "utf-16-le": SECRET.encode("utf-16-le"),
    "utf-16-be": SECRET.encode("utf-16-be"),
    "utf-32-le": SECRET.encode("utf-32-le"),
    "utf-32-be": SECRET.encode("utf-32-be"),
    "latin-1": SECRET.encode("latin-1"),
    "hex": RAW.hex().encode(),
    "HEX": RAW.hex().upper().encode(),
    "hex with colons": RAW.hex(":").encode(),
    "base64 at 0": base64.b64encode(RAW + b"tail"),
    "base64 at 1": base64.b64encode(b"a" + RAW + b"tail"),
    "base64 at 2": base64.b64encode(b"ab" + RAW + b"tail"),
    "base64, nothing after": base64.b64encode(b"ab" + RAW),
    "urlsafe at 0": base64.urlsafe_b64encode(RAW),
    "urlsafe at 1": base64.urlsafe_b64encode(b"a" + RAW),
    "base64 in lines": base64.encodebytes(b"x" * 50 + RAW + b"y" * 50),
    "base64 in lines, in json": json.dumps(
        base64.encodebytes(b"x" * 50 + RAW + b"y" * 50).decode()
    ).encode(),
    "base64 in json with escaped slashes": base64.b64encode(b"a" + RAW).replace(b"/", b"\\/"),
    "base64 of utf-16": base64.b64encode(b"?" + SECRET.encode("utf-16-le")),
    "json": json.dumps({"value": SECRET}).encode(),
    "percent": b"a=canary%3A%20Gr%C3%BC%C3%9Fe%20from%201f9c%3F%3E~&b=1",
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "zlib, fast": lambda data: zlib.compress(data, 1),
    "zlib, small window": lambda data: _small_window(data),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "zstd": zstd,
    "zip": zipped,
    "zip with lzma": lambda data: zipped(data, zipfile.ZIP_LZMA),
    "zip with bzip2": lambda data: zipped(data, zipfile.ZIP_BZIP2),
    "gzip in base64 behind a word": lambda data: b"abc" + base64.b64encode(gzip.compress(data)),
    "zlib in base64 behind a word": lambda data: b" ab" + base64.b64encode(zlib.compress(data)),
    "gzip in hex behind a digit": lambda data: b" 1" + gzip.compress(data).hex().encode(),
    "gzip in gzip": lambda data: gzip.compress(gzip.compress(data)),
    "gzip in base64": lambda data: base64.b64encode(gzip.compress(data * 3)),
    "gzip in hex": lambda data: gzip.compress(data * 3).hex().encode(),
    "gzip in base64 in gzip": lambda data: gzip.compress(
        b'{"blob": "' + base64.b64encode(gzip.compress(data * 3)) + b'"}'
    ),
}


def _small_window(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 9)
    return packer.compress(data) + packer.flush()


# --- canaries ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_found(form: str) -> None:
    report = scan_leaks([{"state.tmp": raw_and_more(FORMS[form])}], {"the token": SECRET})
    assert report.ok is False
    assert {f.canary for f in report.findings} == {"the token"}
    with pytest.raises(CrashConsistencyError, match=r"the token: .* 'state\.tmp'"):
        report.raise_if_findings()


@pytest.mark.parametrize("packer", PACKERS)
def test_each_packing_is_opened(packer: str) -> None:
    # Few letters in no order: every packer codes them as letters, none as copies or as they are.
    words = bytes(random.Random(2).choices(b"abcdefgh", k=2000))
    packed = PACKERS[packer](words + RAW + words)
    assert RAW not in packed
    report = scan_leaks([{"a": raw_and_more(packed)}], [SECRET])
    assert report.ok is False
    finding = report.findings[0]
    assert finding.inside
    assert f"inside {finding.inside[0]}" in report.explain()


@pytest.mark.parametrize("packer", ["gzip", "zlib", "zstd", "zip"])
def test_a_torn_stream_is_read_as_far_as_it_goes(packer: str) -> None:
    data = RAW + random.Random(1).randbytes(60_000)
    packed = PACKERS[packer](data)
    assert scan_leaks([{"a": packed[: len(packed) // 2]}], [SECRET]).ok is False
    if packer != "zstd":  # which gives nothing of a block before it is whole
        damaged = bytearray(packed)
        damaged[len(packed) // 2 : len(packed) // 2 + 64] = bytes(64)
        assert scan_leaks([{"a": bytes(damaged)}], [SECRET]).ok is False


def test_ciphertext_passes() -> None:
    noise = random.Random(9)
    states = [{"data": noise.randbytes(200_000), "journal": noise.randbytes(3000)}]
    report = scan_leaks(states, [SECRET, b"\xff\xfe not text \x00\x01"])
    assert report.ok is True
    assert report.findings == ()
    assert (report.canaries, report.states, report.parts) == (2, 1, 2)
    assert any("LZ4" in line for line in report.not_covered)
    report.raise_if_findings()


def test_another_secret_of_the_same_shape_passes() -> None:
    other = "canary: Grüße from 0000?>~"
    forms = [f(other.encode()) for f in PACKERS.values()]
    report = scan_leaks([{str(n): data for n, data in enumerate(forms)}], [SECRET])
    assert report.ok is True


@given(st.integers(0, 60), st.integers(0, 60), st.binary(min_size=8, max_size=40))
@settings(max_examples=60, deadline=None)
def test_base64_is_found_whatever_stands_around(before: int, after: int, canary: bytes) -> None:
    text = base64.b64encode(b"p" * before + canary + b"s" * after)
    assert scan_leaks([{"f": text}], [canary]).ok is False


def test_a_form_has_its_simplest_name() -> None:
    (finding,) = scan_leaks([{"f": b"the plain canary"}], ["plain canary"]).findings
    assert finding.form == "plain"


def test_names_targets_and_attributes_are_scanned() -> None:
    for tree in (
        Tree.from_mapping({f"vault/{SECRET}.bin": b""}),
        Tree.from_mapping({f"{SECRET}/empty": None}),
        Tree.from_mapping({RAW.hex(): b""}),
        Tree.from_mapping({"link": f"/somewhere/{SECRET}"}),
        Tree({0: Directory({"f": 1}), 1: File(b"", xattrs=(("user.note", RAW),))}),
    ):
        report = scan_leaks([tree], [SECRET])
        assert report.ok is False, tree


def test_the_first_state_is_named_and_the_others_counted() -> None:
    clean, dirty = {"a": b"sealed"}, {"a": b"sealed", "a.tmp": RAW}
    report = scan_leaks([("before", clean), ("in the middle", dirty), ("later", dirty)], [SECRET])
    (finding,) = [f for f in report.findings if f.form == "plain"]
    assert (finding.state, finding.states, finding.path) == ("in the middle", 2, "a.tmp")


def test_the_secret_itself_is_not_printed() -> None:
    assert SECRET not in scan_leaks([{"a": RAW}], {"token": SECRET}).explain()


def test_a_bomb_is_bounded_and_said() -> None:
    bomb = gzip.compress(bytes(8 << 20))
    report = scan_leaks([{"a": bomb}], [SECRET], limit=1 << 20)
    assert any("more is packed inside" in line for line in report.not_covered)
    assert report.ok is True


def test_a_canary_across_windows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_statepersist.leaks.canaries._WINDOW", 4096)
    for at in (3950, 4000, 4080, 4096, 8000, 8160):
        data = bytes(at) + RAW + bytes(9000)
        report = scan_leaks([{"a": data}], [SECRET])
        (finding,) = [f for f in report.findings if f.form == "plain"]
        assert finding.offset == at
        assert any("windows" in line for line in report.not_covered)


def test_nothing_scanned_is_no_verdict() -> None:
    report = scan_leaks([{}], [SECRET])
    assert report.ok is None
    with pytest.raises(BlindSpot, match="nothing to scan"):
        report.raise_if_findings()


@pytest.mark.parametrize(
    ("states", "canaries"),
    [([{"a": b""}], ["short"]), ([{"a": b""}], []), ([{"a": b""}], SECRET), ({"a": b""}, [SECRET])],
)
def test_bad_arguments_of_the_leak_scan(states: object, canaries: object) -> None:
    with pytest.raises(UserError):
        scan_leaks(states, canaries)  # type: ignore[arg-type]


# --- nonces -----------------------------------------------------------------------------------


def message(nonce: bytes, body: bytes, salt: bytes = b"S" * 16) -> bytes:
    return b"MAGIC1" + salt + nonce + body


def nonces(data: bytes) -> list[Sealed]:
    if not data.startswith(b"MAGIC1"):
        if data.startswith(b"MAGIC"):
            raise ValueError("unknown version")
        return []
    return [Sealed(nonce=data[22:34], ciphertext=data[34:], salt=data[6:22])]


N1, N2 = b"nonce-number", b"other-nonce!"


def test_a_repeated_nonce_is_found() -> None:
    states = [
        ("first save", {"s": message(N1, os.urandom(64))}),
        ("second save", {"s": message(N1, os.urandom(64))}),
    ]
    report = scan_nonces(states, nonces)
    assert report.ok is False
    (finding,) = report.findings
    assert (finding.what, finding.value) == ("nonce", N1)
    assert "first save" in finding.first
    assert "second save" in finding.second
    with pytest.raises(CrashConsistencyError, match=r"used twice"):
        report.raise_if_findings()


def test_fresh_nonces_pass_also_when_seen_in_many_states() -> None:
    one, two = message(N1, os.urandom(64)), message(N2, os.urandom(64))
    report = scan_nonces([{"s": one}, {"s": one, "s.tmp": two}, {"s": two}, {"copy": one}], nonces)
    assert report.ok is True
    assert report.messages == {"": 2}
    report.raise_if_findings()


def test_bare_nonces_take_the_file_for_the_message() -> None:
    def bare(data: bytes) -> list[bytes]:
        return [data[22:34]]

    one, two = message(N1, b"c" * 64), message(N1, b"d" * 64)
    assert scan_nonces([{"s": one}, {"s": two}], bare).ok is False
    assert scan_nonces([{"s": one}, {"s": one}, {"s": message(N2, b"x")}], bare).ok is True


RECORD = 48


def log_of(*records: tuple[bytes, bytes]) -> bytes:
    return b"".join(nonce + body.ljust(RECORD - len(nonce), b".") for nonce, body in records)


def records(data: bytes) -> list[Sealed]:
    starts = range(0, len(data) - RECORD + 1, RECORD)
    return [Sealed(data[at : at + 12], data[at + 12 : at + RECORD]) for at in starts]


@pytest.mark.parametrize("within_one_file", [True, False])
@pytest.mark.parametrize("bare", [True, False])
def test_a_nonce_that_a_log_uses_again_is_found(bare: bool, within_one_file: bool) -> None:
    """The log that ends before it was taken for a torn copy of the one that repeats it."""
    grown = [log_of((N1, b"one"), (N2, b"two")), log_of((N1, b"one"), (N2, b"two"), (N1, b"three"))]
    states = [{"log": data} for data in (grown[1:] if within_one_file else grown)]
    found: Callable[[bytes], Any] = records
    if bare:
        found = lambda data: [each.nonce for each in records(data)]  # noqa: E731
    report = scan_nonces(states, found)
    assert [finding.value for finding in report.findings] == [N1]
    if not bare:  # with bare nonces the shorter log is a message that was cut off
        assert report.torn == 0


def test_a_log_that_grows_passes() -> None:
    rows = [(bytes([n]) * 12, b"body %d" % n) for n in range(40)]
    states = [{"log": log_of(*rows[:n])} for n in range(40)]
    whole = states[39]["log"]
    holes = [whole[:at] + bytes(512) + whole[at + 512 :] for at in (512, 1024)]
    torn = [{"log": data} for data in holes]
    assert scan_nonces(states, records).ok is True
    assert scan_nonces(states, lambda data: [each.nonce for each in records(data)]).ok is True
    report = scan_nonces(
        [*states, *torn], lambda data: [each for each in records(data) if any(each.nonce)]
    )
    assert (report.ok, report.torn) == (True, 2)


def test_a_message_that_begins_with_the_sector_that_was_lost_is_torn() -> None:
    def one(data: bytes) -> Sealed:
        return Sealed(data[500:512], data[512:])

    kept = os.urandom(500) + N1 + os.urandom(1024)
    states = [{"s": kept}, {"s": kept[:512] + bytes(512) + kept[1024:]}, {"s": N2 * 200}]
    assert scan_nonces(states, one).ok is True
    other = kept[:512] + os.urandom(512) + kept[1024:]
    assert scan_nonces([*states, {"s": other}], one).ok is False


def test_nothing_may_be_given_for_a_file_without_any() -> None:
    states = [{"s": N1 + b"x", "notes": b"text"}, {"s": N2 + b"y"}]
    report = scan_nonces(states, lambda data: None if data == b"text" else data[:12])
    assert (report.ok, report.unreadable) == (True, 0)


def test_one_nonce_may_be_given_alone() -> None:
    states = [{"a": b"n" * 12 + b"one"}, {"a": b"n" * 12 + b"two"}]
    assert scan_nonces(states, lambda data: data[:12]).ok is False


def test_the_same_nonce_under_two_keys_is_fine() -> None:
    def keyed(data: bytes) -> list[Sealed]:
        return [Sealed(data[1:13], data[13:], key=chr(data[0]))]

    states = [{"s": b"A" + N1 + b"one"}, {"s": b"B" + N1 + b"two"}, {"s": b"A" + N2 + b"one"}]
    report = scan_nonces(states, keyed)
    assert report.ok is True
    assert "key 'B': one message only" in report.not_covered


def test_torn_copies_are_not_taken_for_another_message() -> None:
    old, new = message(N1, os.urandom(9000)), message(N2, os.urandom(9000))
    zeros = new[:4096] + bytes(4096) + new[8192:]
    short = new[:4096]
    mixed = new[:4096] + old[4096:8192] + new[8192:]
    states = [{"s": data} for data in (old, mixed, zeros, new, short)]
    report = scan_nonces(states, nonces)
    assert report.ok is True
    assert report.torn == 3
    assert any("torn copies" in line for line in report.not_covered)


def test_a_reuse_with_a_common_beginning_is_still_found() -> None:
    start = os.urandom(2000)
    one, two = message(N1, start + os.urandom(3000)), message(N1, start + os.urandom(3000))
    torn = one[:4096]
    report = scan_nonces([{"s": one}, {"s": torn}, {"s": two}], nonces)
    assert report.ok is False
    assert report.torn == 1


def test_a_salt_of_two_keys_is_found() -> None:
    def keyed(data: bytes) -> list[Sealed]:
        return [Sealed(data[1:13], data[13:], key=chr(data[0]), salt=b"constant salt 16")]

    states = [{"a": b"A" + N1 + b"one", "b": b"B" + N2 + b"two"}]
    report = scan_nonces(states, keyed)
    assert [f.what for f in report.findings] == ["salt"]
    assert "Draw a new salt" in report.explain()


def test_without_a_reader_nothing_is_covered() -> None:
    report = scan_nonces([{"s": b"x"}], None)
    assert report.ok is None
    assert report.not_covered == ("nonces and salts: no nonces= was given",)


def test_one_message_is_no_verdict() -> None:
    report = scan_nonces([{"s": message(N1, b"x" * 40)}], nonces)
    assert report.ok is None
    with pytest.raises(BlindSpot, match="two messages under one key"):
        report.raise_if_findings()


def test_files_that_cannot_be_read_are_told() -> None:
    states = [{"s": message(N1, b"x"), "t": message(N2, b"y"), "u": b"MAGIC9 torn"}]
    report = scan_nonces(states, nonces)
    assert report.ok is True
    assert report.unreadable == 1
    assert any("'u' of state 0 (ValueError: unknown version)" in s for s in report.not_covered)


@pytest.mark.parametrize("given_back", ["text", 7, b""])
def test_a_reader_that_gives_something_else_is_an_error(given_back: object) -> None:
    with pytest.raises(UserError):
        scan_nonces([{"s": b"x"}], lambda data: [given_back])  # type: ignore[list-item]


# --- permissions ------------------------------------------------------------------------------


def tree_of(modes: dict[str, int], directory: int = 0o700) -> Tree:
    entries = {name: n for n, name in enumerate(modes, 2)}
    nodes = {n: File(b"", mode) for n, mode in enumerate(modes.values(), 2)}
    return Tree({0: Directory({"sub": 1}), 1: Directory(entries, directory), **nodes})


def test_a_chmod_after_the_create_is_found() -> None:
    moments = [tree_of({}), tree_of({"key.tmp": 0o644}), tree_of({"key.tmp": 0o600})]
    report = scan_permissions(moments)
    (finding,) = report.findings
    assert (finding.path, finding.mode, finding.moment) == ("sub/key.tmp", 0o644, "moment 1")
    assert "everybody can read" in report.explain()
    with pytest.raises(CrashConsistencyError, match="when the file is made"):
        report.raise_if_findings()


def test_private_from_the_first_instant_passes() -> None:
    report = scan_permissions([tree_of({}), tree_of({"key.tmp": 0o600}), tree_of({"key": 0o400})])
    assert report.ok is True
    assert report.paths == 2


def test_events_are_accepted_and_name_their_place() -> None:
    events: list[ModeEvent | tuple[str, int]] = [
        ModeEvent("key", 0o660, "store.py:12"),
        ("other", 0o600),
    ]
    report = scan_permissions(events)
    (finding,) = report.findings
    assert finding.moment == "store.py:12"
    assert "the group can read and write" in report.explain()


def test_only_secret_files_count() -> None:
    moments = [("README", 0o644), ("keys/a.key", 0o600)]
    assert scan_permissions(moments, secret=["*.key"]).ok is True
    assert scan_permissions(moments, secret="*.key").ok is True
    assert scan_permissions(moments, secret=lambda path: path == "README").ok is False
    assert scan_permissions(moments).ok is False


def test_directories_count_only_if_trusted() -> None:
    moment = tree_of({"key": 0o644})
    assert scan_permissions([moment]).ok is False
    assert scan_permissions([moment], trust_directories=True).ok is True
    open_to_group = tree_of({"key": 0o644}, 0o750)
    assert scan_permissions([open_to_group], trust_directories=True).ok is False


def test_no_secret_file_is_no_verdict() -> None:
    report = scan_permissions([tree_of({"a": 0o600})], secret=["*.pem"])
    assert report.ok is None
    with pytest.raises(BlindSpot, match="no file that counts as secret"):
        report.raise_if_findings()


@pytest.mark.parametrize("moment", [{"a": b""}, "a", ("a",), 3])
def test_what_is_no_moment_is_an_error(moment: Any) -> None:
    with pytest.raises(UserError):
        scan_permissions([moment])
