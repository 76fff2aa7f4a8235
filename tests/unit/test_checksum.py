from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wgvsock.checksum import changed_checksum, internet_checksum


def test_the_example_of_rfc_1071() -> None:
    assert internet_checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF ^ 0xDDF2


def test_carries_upon_carries() -> None:
    assert internet_checksum(b"\xff\xff" * 70_000) == 0


def test_an_odd_byte_is_the_high_half_of_a_word() -> None:
    assert internet_checksum(b"\x12\x34\x56") == internet_checksum(b"\x12\x34\x56\x00")


@given(st.binary(max_size=64).filter(lambda data: len(data) % 2 == 0))
def test_a_receiver_that_sums_data_and_checksum_finds_nothing_left(data: bytes) -> None:
    assert internet_checksum(data + internet_checksum(data).to_bytes(2, "big")) == 0


def test_the_example_of_rfc_1624() -> None:
    assert changed_checksum(b"\xdd\x2f", b"\x55\x55", b"\x32\x85") == 0


@given(
    st.binary(min_size=4, max_size=32).filter(lambda data: len(data) % 2 == 0 and any(data[2:])),
    st.binary(min_size=2, max_size=2),
)
def test_words_may_change_under_a_checksum(data: bytes, new: bytes) -> None:
    before = internet_checksum(data).to_bytes(2, "big")
    after = changed_checksum(before, data[:2], new).to_bytes(2, "big")
    assert internet_checksum(new + data[2:] + after) == 0
