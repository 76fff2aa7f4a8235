from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.nsm.pcrs import NsmRefusalError, PcrBank, lab_measurements


def refused(bank: PcrBank, operation: str, *arguments: object) -> str:
    with pytest.raises(NsmRefusalError) as caught:
        getattr(bank, operation)(*arguments)
    return caught.value.name


def test_boot_locks_the_first_sixteen() -> None:
    bank = PcrBank({0: b"\x01" * 48})
    assert bank.locked() == {0: b"\x01" * 48} | dict.fromkeys(range(1, 16), bytes(48))
    assert bank.describe(16) == (False, bytes(48))


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=5))
def test_extending_is_a_hash_chain(pieces: list[bytes]) -> None:
    bank, value = PcrBank({}), bytes(48)
    for piece in pieces:
        value = hashlib.sha384(value + piece).digest()
        assert bank.extend(31, piece) == value
    assert bank.describe(31) == (False, value)


def test_a_locked_register_stays_as_it_is() -> None:
    bank = PcrBank({})
    bank.extend(16, b"x")
    bank.lock(16)
    value = bank.locked()[16]
    assert refused(bank, "extend", 16, b"y") == "ReadOnlyIndex"
    assert refused(bank, "lock", 16) == "ReadOnlyIndex"
    assert bank.describe(16) == (True, value)


def test_lock_range_is_half_open_and_repeatable() -> None:
    bank = PcrBank({})
    bank.lock_range(18)
    bank.lock_range(18)
    bank.lock_range(0)
    assert list(bank.locked()) == list(range(18))
    bank.lock_range(32)
    assert refused(bank, "lock_range", 33) == "InvalidIndex"


@pytest.mark.parametrize("index", [-1, 32, 1 << 16])
def test_indices(index: int) -> None:
    bank = PcrBank({})
    assert refused(bank, "describe", index) == "InvalidIndex"
    assert refused(bank, "extend", index, b"") == "InvalidIndex"
    assert refused(bank, "lock", index) == "InvalidIndex"


def test_measurements_differ_by_image_instance_and_role() -> None:
    one = lab_measurements("one", "i-0123456789abcdef0")
    two = lab_measurements("two", "i-0123456789abcdef0", "arn:aws:iam::1:role/r")
    assert all(one[index] != two[index] for index in (0, 1, 2))
    assert one[4] == two[4] == hashlib.sha384(bytes(48) + b"i-0123456789abcdef0").digest()
    assert 3 not in one
    assert two[3] == hashlib.sha384(bytes(48) + b"arn:aws:iam::1:role/r").digest()
