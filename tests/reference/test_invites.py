"""Invite codes: one word, checked; the book that keeps them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_statepersist.reference.envelope import EnvelopeKey
from pytest_statepersist.reference.errors import (
    DamagedData,
    NotFound,
    PersistenceError,
    StorageError,
    WrongPassword,
)
from pytest_statepersist.reference.group_session import found_group, new_leaf
from pytest_statepersist.reference.invites import (
    BOOK_NAME,
    Invite,
    InviteBook,
    InviteOrigin,
    InviteTicket,
)
from pytest_statepersist.reference.slots import Member
from tests.reference.fault_points import failing
from tests.reference.kill_points import each_kill_point

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
GROUP = b"g" * 16


def invite(group: bytes = GROUP) -> Invite:
    own = new_leaf()
    member = Member(
        leaf=own.leaf, user_id="u", name="Alice", joined_at=NOON, signature_key=b"s" * 32
    )
    state, secrets = found_group(group, b"context", member, own)
    return Invite(InviteTicket.new(), state, secrets.secret, 7)


SAMPLE = invite()


def book(root: Path) -> InviteBook:
    return InviteBook(root, key=EnvelopeKey(bytes(32)))


def test_a_code_is_one_word_and_comes_back() -> None:
    code = SAMPLE.encode()
    assert code.startswith("SPI1.")
    assert not set(code) & set(" \n/+=")
    assert Invite.decode(code) == SAMPLE
    wrapped = "\n  ".join([code[:50], code[50:99], code[99:]]) + "\n"
    assert Invite.decode(wrapped) == SAMPLE


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_mistyped_or_cut_code_is_noticed(data: st.DataObject) -> None:
    code = SAMPLE.encode()
    cut = data.draw(st.integers(0, len(code) - 1))
    with pytest.raises(DamagedData):
        Invite.decode(code[:cut])
    letter = data.draw(st.sampled_from("ABCabc123-_é?"))
    mistyped = code[:cut] + letter + code[cut + 1 :]
    if mistyped != code and cut < len(code) - 1:  # the last character has unused bits
        with pytest.raises(DamagedData):
            Invite.decode(mistyped)


def test_the_book_keeps_codes_encrypted(ram_path: Path) -> None:
    first, second, other = invite(), invite(), invite(OTHER := b"o" * 16)
    kept = book(ram_path)
    kept.save(first, InviteOrigin.ISSUED, NOON)
    kept.save(other, InviteOrigin.RECEIVED, NOON + timedelta(hours=1))
    kept.save(second, InviteOrigin.RECEIVED, NOON + timedelta(hours=2))
    again = book(ram_path)
    assert [saved.invite for saved in again.list()] == [first, other, second]
    assert again.list()[0].origin is InviteOrigin.ISSUED
    assert again.newest_for(GROUP) == second
    assert again.newest_for(OTHER) == other
    raw = (ram_path / BOOK_NAME).read_bytes()
    assert first.secret not in raw
    assert first.encode().encode() not in raw
    again.forget(second.ticket.invite_id)
    assert book(ram_path).newest_for(GROUP) == first
    with pytest.raises(NotFound):
        again.forget(second.ticket.invite_id)
    with pytest.raises(NotFound):
        again.newest_for(b"unknown")


def test_a_damaged_book_or_a_wrong_key_is_said(ram_path: Path) -> None:
    book(ram_path).save(SAMPLE, InviteOrigin.ISSUED, NOON)
    with pytest.raises(WrongPassword):
        InviteBook(ram_path, key=EnvelopeKey(b"x" * 32)).list()
    path = ram_path / BOOK_NAME
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PersistenceError):
        book(ram_path).list()
    with pytest.raises(PersistenceError):
        book(ram_path).save(SAMPLE, InviteOrigin.ISSUED, NOON)  # never overwritten unread


def test_a_kill_at_any_call_keeps_every_saved_code(ram_path: Path) -> None:
    root = ram_path / "book"
    new = invite()
    done: list[bool] = []

    def make() -> Callable[[], None]:
        shutil.rmtree(root, ignore_errors=True)
        book(root).save(SAMPLE, InviteOrigin.ISSUED, NOON)
        done.clear()
        return work

    def work() -> None:
        book(root).save(new, InviteOrigin.RECEIVED, NOON + timedelta(hours=1))
        done.append(True)

    def after() -> None:
        found = [saved.invite for saved in book(root).list()]
        assert found in ([SAMPLE], [SAMPLE, new])
        assert len(found) == 2 or not done

    assert each_kill_point(make, after) >= 6


def test_any_call_may_fail_and_trying_again_works(ram_path: Path) -> None:
    point, fired = 0, True
    while fired:
        root = ram_path / str(point)
        book(root).save(SAMPLE, InviteOrigin.ISSUED, NOON)
        with failing(point) as fault:
            save_stubbornly(root)
        assert [saved.invite for saved in book(root).list()] == [SAMPLE]
        fired = fault.fired
        point += 1
    assert point > 6


def save_stubbornly(root: Path) -> None:
    for attempt in range(2):
        try:
            return book(root).save(SAMPLE, InviteOrigin.ISSUED, NOON)
        except StorageError:
            if attempt:
                raise
    return None
