from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.attestation.cbor import DEFAULT_MAX_DEPTH, strict_loads
from wgvsock.attestation.errors import CborError

scalars = (
    st.none() | st.booleans() | st.integers(-(1 << 64), (1 << 64) - 1) | st.binary(max_size=300) | st.text(max_size=80)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=30)
        | st.dictionaries(st.integers(-(1 << 64), (1 << 64) - 1) | st.text(), inner, max_size=5)
    ),
    max_leaves=40,
)


@given(values)
def test_reads_what_cbor2_writes(value: object) -> None:
    assert strict_loads(cbor2.dumps(value), max_depth=50) == value


@given(values)
def test_a_view_reads_like_bytes(value: object) -> None:
    assert strict_loads(memoryview(cbor2.dumps(value)), max_depth=50) == value


@given(st.binary(max_size=60) | values.map(cbor2.dumps).flatmap(lambda data: st.permutations(data).map(bytes)))
def test_there_is_one_encoding_of_each_value(data: bytes) -> None:
    """Whatever is accepted encodes to the same bytes again: no second form of anything gets through."""
    try:
        value = strict_loads(data)
    except CborError:
        return
    assert cbor2.dumps(value) == data


@given(values)
def test_every_truncation_is_refused(value: object) -> None:
    data = cbor2.dumps(value)
    for length in range(len(data)):
        with pytest.raises(CborError):
            strict_loads(data[:length], max_depth=50)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("", "ends too early"),
        ("0000", "follow the item"),
        ("f6f6", "follow the item"),
        ("1801", "shortest form"),  # 1 in two bytes
        ("1817", "shortest form"),
        ("1900ff", "shortest form"),
        ("1a0000ffff", "shortest form"),
        ("1b00000000ffffffff", "shortest form"),
        ("3817", "shortest form"),
        ("580161", "shortest form"),  # a byte string of 1 byte with a two-byte head
        ("1c", "indefinite length or a reserved head"),
        ("1f", "indefinite length or a reserved head"),
        ("5f4161ff", "indefinite length"),
        ("9f01ff", "indefinite length"),
        ("bf0101ff", "indefinite length"),
        ("c001", "tags"),  # tag 0
        ("d2840000000000", "tags"),
        ("c24101", "tags"),  # a bignum
        ("f90000", "floats"),
        ("fa00000000", "floats"),
        ("fb0000000000000000", "floats"),
        ("f7", "simple values"),  # undefined
        ("f8ff", "simple values"),
        ("e0", "simple values"),
        ("ff", "simple values"),  # a break without a beginning
        ("a14001", "map key"),
        ("a1f501", "map key"),  # true is no key, so that it cannot pass for 1
        ("a18001", "map key"),
        ("a201010102", "twice"),
        ("a26161016161f6", "twice"),
        ("61ff", "UTF-8"),
        ("62c328", "UTF-8"),
        ("a161ff01", "UTF-8"),
        ("1b00000001", "ends too early"),
        ("41", "longer than the message"),
        ("9affffffff", "ends too early"),  # a huge count reserves nothing
        ("9bffffffffffffffff00", "ends too early"),
        ("bbffffffffffffffff", "ends too early"),
        ("5bffffffffffffffff00", "longer than the message"),
    ],
)
def test_refused(data: str, why: str) -> None:
    with pytest.raises(CborError, match=why):
        strict_loads(bytes.fromhex(data))


@pytest.mark.parametrize("container", [b"\x81", b"\xa1\x00"])
def test_depth_is_bounded(container: bytes) -> None:
    strict_loads(container * DEFAULT_MAX_DEPTH + b"\x00")
    with pytest.raises(CborError, match="too deeply"):
        strict_loads(container * (DEFAULT_MAX_DEPTH + 1) + b"\x00")
    with pytest.raises(CborError, match="too deeply"):
        strict_loads(container * 100_000)


def test_a_scalar_has_depth_zero() -> None:
    assert strict_loads(b"\x00", max_depth=0) == 0
    with pytest.raises(CborError, match="too deeply"):
        strict_loads(b"\x80", max_depth=0)
