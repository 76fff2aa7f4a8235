from __future__ import annotations

from typing import Any

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
    """Whatever is accepted encodes to the same bytes again: nothing has a second accepted form."""
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


# The outermost map may be open where the caller says so: AWS writes a document's payload so since 2025.


def opened(value: dict[Any, Any]) -> bytes:
    """The map as ``bf … ff``, with unchanged contents."""
    return b"\xbf" + b"".join(cbor2.dumps(key) + cbor2.dumps(item) for key, item in value.items()) + b"\xff"


maps = st.dictionaries(st.integers(-(1 << 64), (1 << 64) - 1) | st.text(), values, max_size=5)


@given(maps)
def test_an_open_map_reads_like_a_closed_one(value: dict[Any, Any]) -> None:
    assert strict_loads(opened(value), max_depth=50, may_be_open=True) == value
    assert strict_loads(memoryview(opened(value)), max_depth=50, may_be_open=True) == value
    assert strict_loads(cbor2.dumps(value), max_depth=50, may_be_open=True) == value


@given(maps)
def test_an_open_map_is_refused_unless_the_caller_allows_it(value: dict[Any, Any]) -> None:
    with pytest.raises(CborError, match="indefinite length"):
        strict_loads(opened(value), max_depth=50)


@given(maps)
def test_every_truncation_of_an_open_map_is_refused(value: dict[Any, Any]) -> None:
    data = opened(value)
    for length in range(len(data)):
        with pytest.raises(CborError):
            strict_loads(data[:length], max_depth=50, may_be_open=True)


@given(
    st.binary(max_size=60).map(lambda data: b"\xbf" + data)
    | maps.map(opened).flatmap(lambda data: st.permutations(data).map(bytes))
)
def test_there_is_one_open_encoding_of_each_map(data: bytes) -> None:
    try:
        value = strict_loads(data, may_be_open=True)
    except CborError:
        return
    assert data in {cbor2.dumps(value), opened(value) if isinstance(value, dict) else b""}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("bf", "lacks its break"),
        ("bf0101", "lacks its break"),
        ("bf01", "ends too early"),
        ("bf01ff", "simple values"),  # a key without a value: the break stands in its place
        ("bf010102ff", "simple values"),
        ("bfff00", "follow the item"),
        ("bfffff", "follow the item"),
        ("bf0101ff0101ff", "follow the item"),
        ("bf01bfffff", "indefinite length"),  # open inside open
        ("bf01bf0101ffff", "indefinite length"),
        ("bf019fffff", "indefinite length"),
        ("bf015fffff", "indefinite length"),
        ("bf017fffff", "indefinite length"),
        ("bf01a102ffff", "simple values"),
        ("bf0181ffff", "simple values"),
        ("a101bfff", "indefinite length"),  # the outermost alone
        ("81bfff", "indefinite length"),
        ("9fff", "indefinite length"),  # and a map alone
        ("5fff", "indefinite length"),
        ("7fff", "indefinite length"),
        ("ff", "simple values"),
        ("a1ff01", "map key"),
        ("bff501ff", "map key"),
        ("bf4001ff", "map key"),
        ("bf01010102ff", "twice"),
        ("bf616101616102ff", "twice"),
        ("bf61ff01ff", "UTF-8"),
        ("bf180101ff", "shortest form"),
        ("bf011801ff", "shortest form"),
        ("bf01c001ff", "tags"),
        ("bf01f90000ff", "floats"),
        ("c1bfff", "tags"),
    ],
)
def test_an_open_map_weakens_nothing(data: str, why: str) -> None:
    with pytest.raises(CborError, match=why):
        strict_loads(bytes.fromhex(data), may_be_open=True)


def test_an_open_map_counts_towards_the_depth() -> None:
    assert strict_loads(b"\xbf\xff", max_depth=1, may_be_open=True) == {}
    with pytest.raises(CborError, match="too deeply"):
        strict_loads(b"\xbf\xff", max_depth=0, may_be_open=True)
    inside = b"\x81" * (DEFAULT_MAX_DEPTH - 1) + b"\x00"
    strict_loads(b"\xbf\x00" + inside + b"\xff", may_be_open=True)
    with pytest.raises(CborError, match="too deeply"):
        strict_loads(b"\xbf\x00\x81" + inside + b"\xff", may_be_open=True)


def test_a_scalar_has_depth_zero() -> None:
    assert strict_loads(b"\x00", max_depth=0) == 0
    with pytest.raises(CborError, match="too deeply"):
        strict_loads(b"\x80", max_depth=0)
