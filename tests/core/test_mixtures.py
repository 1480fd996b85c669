"""What a block may hold between two looks at the memory that maps it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.mixtures import WORD, changed_words, mixtures, mixtures_of
from pytest_statepersist.core.tree import Directory, File, Tree

WORDS = st.lists(st.sampled_from([b"aaaaaaaa", b"bbbbbbbb", b"cccccccc"]), min_size=1, max_size=12)


def joined(words: list[bytes]) -> bytes:
    return b"".join(words)


def test_one_word_is_one_store() -> None:
    old = b"x" * 32
    assert list(mixtures(old, b"y" * WORD + old[WORD:])) == []
    assert list(mixtures(old, old)) == []


def test_two_words_may_each_be_there_alone() -> None:
    old, new = b"a" * 16, b"b" * 16
    assert list(mixtures(old, new)) == [b"b" * 8 + b"a" * 8, b"a" * 8 + b"b" * 8]


def test_three_words_in_every_mixture() -> None:
    old, new = b"a" * 24, b"b" * 24
    assert len(set(mixtures(old, new))) == 2**3 - 2


@given(WORDS, WORDS)
def test_a_mixture_has_each_word_old_or_new_and_is_neither(
    old: list[bytes], new: list[bytes]
) -> None:
    size = min(len(old), len(new))
    one, other = joined(old[:size]), joined(new[:size])
    words = changed_words(one, other)
    found = list(mixtures(one, other))
    assert len(found) == len(set(found))
    assert bool(found) == (len(words) > 1)
    for version in found:
        assert version not in (one, other)
        for at in range(0, len(version), WORD):
            piece = version[at : at + WORD]
            assert piece in (one[at : at + WORD], other[at : at + WORD])
    if len(words) > 1:  # the copy from front to back, stopped in the middle
        assert any(v.startswith(other[: WORD * (words[0] + 1)]) for v in found)


def test_a_trace_is_mixed_until_the_block_is_forced() -> None:
    base = Tree({0: Directory({"f": 1}), 1: File(b"a" * 16)})
    change = op.Write(1, 0, b"b" * 16, unordered=True)
    trace = op.Trace(
        base,
        (op.Create(2, 0, "g"), change, op.Create(3, 0, "h"), op.SyncRange(1, 0, 16)),
        (op.Acknowledgement(1), op.Acknowledgement(4)),
    )
    mixed = list(mixtures_of(trace))
    assert [each.operations[1].data for each in mixed] == [  # type: ignore[union-attr]
        b"b" * 8 + b"a" * 8,
        b"a" * 8 + b"b" * 8,
    ]
    assert {len(each) for each in mixed} == {3}
    assert {len(each.acknowledgements) for each in mixed} == {1}
    assert list(mixtures_of(trace.with_operations((op.Write(1, 0, b"b" * 16),)))) == []
