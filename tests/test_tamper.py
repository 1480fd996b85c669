"""The tamper sweep: every kind of damage, stores that it must catch and one that it must pass."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import hmac
import json
import os
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist.core.tree import Tree
from pytest_statepersist.errors import BlindSpot, CrashConsistencyError, UserError
from pytest_statepersist.tamper import (
    Damage,
    Passing,
    Sweep,
    Verdict,
    check_integrity,
    tamperings,
)

KEY = b"the key of these tests, 32 bytes"
QUICK = Sweep(small=0, flips=64, cuts=32, header=8, splices=8, swaps=4)
Files = Mapping[str, bytes]


class Damaged(Exception):
    """What the stores below raise for damaged files."""


def seal(name: str, value: object) -> bytes:
    body = json.dumps(value).encode()
    return hmac.digest(KEY, name.encode() + b"\0" + body, "sha256") + body


def unseal(name: str, data: bytes) -> Any:
    tag, body = data[:32], data[32:]
    if not hmac.compare_digest(tag, hmac.digest(KEY, name.encode() + b"\0" + body, "sha256")):
        raise Damaged(name)
    return json.loads(body)


def sound(directory: Path) -> Any:
    return unseal("state", (directory / "state").read_bytes())


SOUND = {"state": seal("state", {"balance": 100, "owner": "ada"})}


def kinds(report: Any) -> set[Damage]:
    return {damage for _, damage in report.failed}


# --- the generators ---------------------------------------------------------------------------


def test_every_bit_of_a_small_file_is_flipped_once() -> None:
    data = bytes(range(40))
    flipped = [t.files["f"] for t in tamperings({"f": data}) if t.damage is Damage.FLIP]
    assert len(flipped) == 320
    positions = set()
    for found in flipped:
        assert found is not None
        difference = int.from_bytes(found, "big") ^ int.from_bytes(data, "big")
        assert difference.bit_count() == 1
        positions.add(difference)
    assert len(positions) == 320


def test_every_truncation_of_a_small_file_is_made() -> None:
    data = b"0123456789"
    made = [t for t in tamperings({"f": data}) if t.damage in (Damage.TRUNCATE, Damage.EMPTY)]
    assert sorted(len(t.files["f"] or b"") for t in made) == list(range(10))
    assert all(data.startswith(t.files["f"] or b"") for t in made)


def test_a_large_file_is_sampled_with_its_edges() -> None:
    data = os.urandom(5000)
    sweep = Sweep(small=100, flips=2000, cuts=300)
    places = []
    cuts = []
    for t in tamperings({"f": data}, sweep=sweep, seed=3):
        found = t.files["f"]
        if t.damage is Damage.FLIP:
            assert found is not None
            places += [i for i in range(5000) if found[i] != data[i]]
        elif t.damage is Damage.TRUNCATE:
            cuts.append(len(found or b""))
    assert len(places) == 2000
    assert set(range(64)) | set(range(4936, 5000)) <= set(places)
    assert len(set(cuts)) == len(cuts) == 299  # the cut to nothing is the emptied file
    assert set(range(1, 64)) <= set(cuts)


def test_the_same_seed_gives_the_same_cases() -> None:
    files = {"a": os.urandom(9000), "b": os.urandom(9000)}
    runs = [[(t.label, t.files) for t in tamperings(files, seed=s)] for s in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_leaving_a_kind_out_does_not_change_the_others() -> None:
    files = {"a": os.urandom(5000)}
    without = Sweep(skip=frozenset({Damage.FLIP}))
    all_of = [t.label for t in tamperings(files) if t.damage is not Damage.FLIP]
    assert [t.label for t in tamperings(files, sweep=without)] == all_of


def test_each_kind_is_made() -> None:
    files = {"a": os.urandom(9000), "b": os.urandom(9000)}
    older = [{"a": os.urandom(9000), "b": os.urandom(9000)}]
    made = Counter(t.damage for t in tamperings(files, older=older, sweep=QUICK))
    assert set(made) == set(Damage)
    assert made[Damage.ROLL_BACK] == 2
    assert made[Damage.ROLL_BACK_ALL] == made[Damage.SWAP_NAMES] == 1


def test_labels_say_what_was_done() -> None:
    files, older = {"a": b"x" * 40, "b": b"y" * 40}, [{"a": b"z" * 40, "b": b"w" * 40}]
    labels = [t.label for t in tamperings(files, older=older)]
    assert "a: bit 3 of byte 7 (of 40) flipped" in labels
    assert "b: cut off after 12 of 40 bytes" in labels
    assert "a and b: contents exchanged" in labels
    assert "a: replaced by its older valid version #0" in labels
    assert "a: bytes 0 to 3 set to ff ff ff ff" in labels
    assert "a: bytes 4 to 7 set to ff ff ff 7f" in labels
    assert len(set(labels)) == len(labels)


def test_the_words_of_a_block_swap_match_the_bytes() -> None:
    data = os.urandom(64)
    swap = next(t for t in tamperings({"a": data}) if t.damage is Damage.SWAP_BLOCKS)
    assert swap.label == "a: the 16-byte blocks 0 and 1 exchanged"
    assert swap.files["a"] == data[16:32] + data[:16] + data[32:]


@given(
    st.dictionaries(st.sampled_from("abc"), st.binary(max_size=80), min_size=1),
    st.dictionaries(st.sampled_from("abc"), st.binary(max_size=80)),
)
@settings(max_examples=40, deadline=None)
def test_every_case_differs_from_the_original(
    files: dict[str, bytes], older: dict[str, bytes]
) -> None:
    kept = dict(files)
    for case in tamperings(files, older=[older], sweep=QUICK):
        assert any(kept.get(name) != data for name, data in case.files.items()), case.label
    assert files == kept


def test_nothing_to_damage_is_an_error() -> None:
    with pytest.raises(UserError, match="no file to damage"):
        list(tamperings({}))


def test_a_negative_sweep_is_an_error() -> None:
    with pytest.raises(UserError, match=r"Sweep\.flips"):
        Sweep(flips=-1)


# --- the sound store passes -------------------------------------------------------------------


@pytest.mark.parametrize("passing", Passing)
def test_a_sound_store_passes(passing: Passing) -> None:
    def load(given: Any) -> Any:
        if passing is Passing.DIRECTORY:
            return sound(given)
        return unseal("state", given["state"])

    report = check_integrity(load, SOUND, expect=Damaged, passing=passing)
    assert report.ok is True
    assert report.findings == ()
    assert report.unchanged == 0
    assert report.refused == report.cases > 8 * len(SOUND["state"])
    report.raise_if_findings()
    assert "roll-back: no older files were given (older=…)" in report.not_covered


def test_a_tree_is_accepted() -> None:
    assert check_integrity(sound, Tree.from_mapping(SOUND), expect=Damaged, sweep=QUICK).ok is True


def test_a_sound_store_of_several_files_passes_roll_back_and_exchange() -> None:
    """Its index holds the digest of each file, and the caller knows the index's own version."""

    def save(version: int, values: dict[str, str]) -> dict[str, bytes]:
        files = {f"items/{key}": seal(f"items/{key}", value) for key, value in values.items()}
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        return {**files, "index": seal("index", {"version": version, "digests": digests})}

    def load(directory: Path) -> dict[str, str]:
        index = unseal("index", (directory / "index").read_bytes())
        if index["version"] != 2:
            raise Damaged("rolled back")
        values = {}
        for name, digest in index["digests"].items():
            data = (directory / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != digest:
                raise Damaged(name)
            values[name] = unseal(name, data)
        return values

    new = save(2, {"a": "one", "b": "two"})
    report = check_integrity(
        load, new, expect=Damaged, older=save(1, {"a": "uno", "b": "due"}), sweep=QUICK
    )
    assert report.ok is True
    assert not any("roll-back" in line for line in report.not_covered)


# --- each fault is caught ---------------------------------------------------------------------


def plain(directory: Path) -> Any:
    """Reads whatever is there: a flipped digit of a balance is another balance."""
    try:
        return json.loads((directory / "state").read_bytes())
    except (ValueError, RecursionError) as error:
        raise Damaged("not JSON") from error


def test_a_store_without_a_checksum_is_caught_by_a_flip() -> None:
    report = check_integrity(plain, {"state": b'{"balance": 100}'}, expect=Damaged)
    assert report.ok is False
    assert Damage.FLIP in kinds(report)
    finding = next(f for f in report.findings if f.tampering.damage is Damage.FLIP)
    assert finding.verdict is Verdict.ACCEPTED
    assert finding.label.startswith("state: bit ")
    with pytest.raises(CrashConsistencyError) as caught:
        report.raise_if_findings()
    assert caught.value.report is report
    text = str(caught.value)
    assert finding.observed in text
    assert "instead of raising Damaged; what was saved is {'balance': 100}" in text
    assert "checksum" in text


def test_findings_are_counted_but_kept_in_small_number() -> None:
    def blind(directory: Path) -> bytes:
        data = (directory / "state").read_bytes()
        if len(data) != 200:
            raise Damaged
        return data

    report = check_integrity(blind, {"state": os.urandom(200)}, expect=Damaged)
    assert report.failed[Verdict.ACCEPTED, Damage.FLIP] == 1600
    assert sum(f.tampering.damage is Damage.FLIP for f in report.findings) == 10


def test_a_store_that_crashes_in_its_parser_is_caught() -> None:
    def load(directory: Path) -> Any:
        data = (directory / "state").read_bytes()
        value = json.loads(data[4:])
        if zlib.crc32(data[4:]) != int.from_bytes(data[:4], "big"):
            raise Damaged
        return value

    body = b'{"balance": 100}'
    report = check_integrity(
        load, {"state": zlib.crc32(body).to_bytes(4, "big") + body}, expect=Damaged
    )
    wrong = [f for f in report.findings if f.verdict is Verdict.WRONG_ERROR]
    assert any(isinstance(f.error, json.JSONDecodeError) for f in wrong)
    assert {v for v, _ in report.failed} == {Verdict.WRONG_ERROR}
    assert "the load raised    JSONDecodeError" in report.explain()


def test_a_store_that_ignores_the_length_is_caught_by_an_extension() -> None:
    def load(directory: Path) -> bytes:
        data = (directory / "state").read_bytes()
        size = int.from_bytes(data[:2], "big")
        body, check = data[2 : 2 + size], data[2 + size : 6 + size]
        if len(body) != size or check != zlib.crc32(data[: 2 + size]).to_bytes(4, "big"):
            raise Damaged
        return body

    head = (5).to_bytes(2, "big") + b"state"
    files = {"state": head + zlib.crc32(head).to_bytes(4, "big")}
    report = check_integrity(load, files, expect=Damaged)
    assert report.ok is True  # harmless: what comes back is what was saved
    assert report.unchanged > 0
    strict = check_integrity(load, files, expect=Damaged, accept_original=False)
    assert kinds(strict) == {Damage.EXTEND}


def test_block_wise_authentication_is_caught_by_exchanged_blocks() -> None:
    """Each 512-byte block has its own tag, but the tag does not say which block it is."""

    def save(value: bytes) -> bytes:
        blocks = [value[i : i + 480] for i in range(0, len(value), 480)]
        return b"".join(hmac.digest(KEY, block, "sha256") + block for block in blocks)

    def load(directory: Path) -> bytes:
        data, value = (directory / "state").read_bytes(), b""
        if len(data) != 2048:
            raise Damaged
        for at in range(0, len(data), 512):
            tag, block = data[at : at + 32], data[at + 32 : at + 512]
            if tag != hmac.digest(KEY, block, "sha256"):
                raise Damaged
            value += block
        return value

    report = check_integrity(load, {"state": save(os.urandom(1920))}, expect=Damaged, sweep=QUICK)
    assert kinds(report) == {Damage.SWAP_BLOCKS}


def test_block_wise_authentication_is_caught_by_a_splice() -> None:
    def save(value: bytes) -> bytes:
        return b"".join(
            hmac.digest(KEY, bytes([n]) + value[n * 4 : n * 4 + 4], "sha256")[:12]
            + value[n * 4 : n * 4 + 4]
            for n in range(4)
        )

    def load(directory: Path) -> bytes:
        data, value = (directory / "state").read_bytes(), b""
        if len(data) != 64:
            raise Damaged
        for n in range(4):
            part = data[n * 16 : n * 16 + 16]
            if part[:12] != hmac.digest(KEY, bytes([n]) + part[12:], "sha256")[:12]:
                raise Damaged
            value += part[12:]
        return value

    older = {"state": save(b"an older content")}
    report = check_integrity(
        load, {"state": save(b"some new content")}, expect=Damaged, older=older
    )
    assert Damage.SPLICE in kinds(report)
    assert kinds(report) == {Damage.SPLICE, Damage.ROLL_BACK}


def test_a_store_without_freshness_is_caught_by_a_roll_back() -> None:
    older = {"state": seal("state", {"balance": 1_000_000, "owner": "ada"})}
    report = check_integrity(sound, SOUND, expect=Damaged, older=older, sweep=QUICK)
    assert kinds(report) == {Damage.ROLL_BACK}
    assert "1000000" in report.findings[0].observed
    known = Sweep(skip=frozenset({Damage.ROLL_BACK}))
    quiet = check_integrity(sound, SOUND, expect=Damaged, older=older, sweep=known)
    assert quiet.ok is True
    assert "ROLL_BACK: left out on request" in quiet.not_covered


def test_names_that_are_not_authenticated_are_caught_by_an_exchange() -> None:
    def load(files: Files) -> list[Any]:
        return [unseal("", files["a"]), unseal("", files["b"])]

    files = {"a": seal("", 1), "b": seal("", 2)}
    report = check_integrity(load, files, expect=Damaged, passing=Passing.MAPPING, sweep=QUICK)
    assert kinds(report) == {Damage.SWAP_NAMES, Damage.SPLICE} - {Damage.SPLICE}
    assert report.failed[Verdict.ACCEPTED, Damage.SWAP_NAMES] == 1


def test_a_missing_file_taken_for_a_first_start_is_caught() -> None:
    def load(directory: Path) -> Any:
        try:
            return sound(directory)
        except FileNotFoundError:
            return {}

    report = check_integrity(load, SOUND, expect=Damaged, sweep=QUICK)
    assert kinds(report) == {Damage.MISSING}
    assert "not a first start" in report.explain()


def test_an_empty_file_taken_for_an_empty_state_is_caught() -> None:
    def load(directory: Path) -> Any:
        return sound(directory) if (directory / "state").stat().st_size else None

    assert kinds(check_integrity(load, SOUND, expect=Damaged, sweep=QUICK)) == {Damage.EMPTY}


def test_a_length_field_that_is_believed_is_caught() -> None:
    def load(directory: Path) -> bytes:
        data = (directory / "state").read_bytes()
        size = int.from_bytes(data[:4], "big")
        if size > 1 << 24:
            raise MemoryError("what a real allocation of that size would do")
        if data[4 + size :] != hashlib.sha256(data[: 4 + size]).digest():
            raise Damaged
        return data[4 : 4 + size]

    head = (3).to_bytes(4, "big") + b"abc"
    report = check_integrity(
        load, {"state": head + hashlib.sha256(head).digest()}, expect=Damaged, sweep=QUICK
    )
    assert (Verdict.WRONG_ERROR, Damage.EXTREME) in report.failed


def test_a_load_that_exits_is_a_finding_and_the_sweep_goes_on() -> None:
    def load(directory: Path) -> Any:
        try:
            return sound(directory)
        except Damaged:
            raise SystemExit(1) from None

    report = check_integrity(load, SOUND, expect=Damaged, sweep=QUICK)
    assert {v for v, _ in report.failed} == {Verdict.WRONG_ERROR}
    assert sum(report.failed.values()) == report.cases - 1  # the missing file


def test_an_outcome_of_the_test_runner_is_not_swallowed() -> None:
    def load(directory: Path) -> Any:
        try:
            return sound(directory)
        except Damaged:
            pytest.fail("as a time limit would do")

    with pytest.raises(pytest.fail.Exception, match="time limit"):
        check_integrity(load, SOUND, expect=Damaged)


# --- what proves nothing is not passed --------------------------------------------------------


def test_a_load_that_reads_nothing_gets_no_verdict() -> None:
    report = check_integrity(lambda directory: 42, SOUND, expect=Damaged, sweep=QUICK)
    assert report.ok is None
    assert report.untested == ("state",)
    with pytest.raises(BlindSpot, match="answer from memory"):
        report.raise_if_findings()


def test_a_load_that_answers_from_memory_gets_no_verdict() -> None:
    @functools.cache
    def load(directory: Path) -> Any:
        return sound(directory)

    assert check_integrity(load, SOUND, expect=Damaged, sweep=QUICK).ok is None


def test_a_cache_by_size_and_time_does_not_hide_a_flip() -> None:
    cache: dict[tuple[int, int], Any] = {}

    def load(directory: Path) -> Any:
        found = (directory / "state").stat()
        key = found.st_size, found.st_mtime_ns
        if key not in cache:
            cache[key] = plain(directory)
        return cache[key]

    report = check_integrity(load, {"state": b'{"balance": 100}'}, expect=Damaged)
    assert Damage.FLIP in kinds(report)


def test_one_unread_file_is_told_and_can_be_named() -> None:
    files = {**SOUND, "README": b"how to"}
    report = check_integrity(sound, files, expect=Damaged, sweep=QUICK)
    assert report.ok is None
    assert report.untested == ("README",)
    named = check_integrity(sound, files, expect=Damaged, sweep=QUICK, unread={"README"})
    assert named.ok is True
    assert "README: known not to be read" in named.not_covered


def test_a_load_that_keeps_state_is_refused() -> None:
    broken: list[int] = []

    def load(directory: Path) -> Any:
        if broken:
            raise Damaged("for ever")
        try:
            return sound(directory)
        except Damaged:
            broken.append(1)
            raise

    with pytest.raises(UserError, match="keeps state"):
        check_integrity(load, SOUND, expect=Damaged, sweep=QUICK)


# --- the scratch directory --------------------------------------------------------------------


def test_the_load_may_change_the_directory() -> None:
    """It quarantines, repairs, leaves locks and empty directories; the next case starts clean."""

    def load(directory: Path) -> Any:
        names = sorted(os.listdir(directory))
        assert names == [name for name in names if name == "state"], names
        (directory / "lock").write_bytes(b"")
        (directory / "work").mkdir()
        try:
            return sound(directory)
        except Damaged:
            (directory / "state").rename(directory / "state.damaged")
            raise
        finally:
            if (directory / "state").exists():
                (directory / "state").write_bytes(b"x" * len(SOUND["state"]))

    report = check_integrity(load, SOUND, expect=Damaged, sweep=QUICK)
    assert report.ok is True


def test_the_scratch_directory_goes_away_and_the_own_one_is_never_used(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(SOUND["state"])
    seen = set()

    def load(directory: Path) -> Any:
        seen.add(directory)
        return sound(directory)

    files = {"state": (tmp_path / "state").read_bytes()}
    check_integrity(load, files, expect=Damaged, sweep=QUICK)
    assert len(seen) == 1
    assert not next(iter(seen)).exists()
    assert tmp_path not in next(iter(seen)).parents
    assert (tmp_path / "state").read_bytes() == SOUND["state"]


# --- arguments --------------------------------------------------------------------------------


def test_files_that_do_not_load_are_an_error() -> None:
    with pytest.raises(UserError, match="the undamaged files do not load: Damaged"):
        check_integrity(sound, {"state": b"x" * 80}, expect=Damaged)


@pytest.mark.parametrize("expect", [Exception, BaseException, (Damaged, Exception)])
def test_an_expectation_that_nothing_could_fail_is_an_error(expect: Any) -> None:
    with pytest.raises(UserError, match="every crash"):
        check_integrity(sound, SOUND, expect=expect)


def test_values_without_equality_are_an_error_with_a_way_out() -> None:
    class Value:
        def __init__(self, held: Any) -> None:
            self.held = held

    def load(directory: Path) -> Value:
        return Value(sound(directory))

    with pytest.raises(UserError, match="same="):
        check_integrity(load, SOUND, expect=Damaged)
    report = check_integrity(
        load, SOUND, expect=Damaged, sweep=QUICK, same=lambda a, b: a.held == b.held
    )
    assert report.ok is True


def test_an_asynchronous_load_is_an_error_with_a_way_out() -> None:
    async def load(directory: Path) -> Any:
        return sound(directory)

    with pytest.raises(UserError, match=r"asyncio\.run"):
        check_integrity(load, SOUND, expect=Damaged)
    report = check_integrity(
        lambda directory: asyncio.run(load(directory)),
        SOUND,
        expect=Damaged,
        sweep=Sweep(small=0, flips=8, cuts=4, header=0),
    )
    assert report.ok is True


@pytest.mark.parametrize("files", [{"../x": b""}, {"a": "text"}, {"": b""}, {"/etc/x": b""}, 7])
def test_bad_files_are_an_error(files: Any) -> None:
    with pytest.raises(UserError):
        check_integrity(sound, files, expect=Damaged)


@given(st.binary(min_size=1, max_size=60))
@settings(max_examples=15, deadline=None)
def test_a_keyed_tag_over_everything_always_passes(body: bytes) -> None:
    def load(files: Files) -> bytes:
        tag, found = files["f"][:32], files["f"][32:]
        if tag != hmac.digest(KEY, found, "sha256"):
            raise Damaged
        return found

    files = {"f": hmac.digest(KEY, body, "sha256") + body}
    assert check_integrity(load, files, expect=Damaged, passing=Passing.MAPPING).ok is True
