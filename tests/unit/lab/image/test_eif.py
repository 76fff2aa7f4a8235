"""Against the public format's facts, written out here by hand rather than taken from the module."""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.image.eif import EifError, EnclaveImage, measure, measurements_json, pack, unpack

IMAGE = EnclaveImage(b"kernel", "console=ttyS0 reboot=k", (b"init", b"app"), {"ImageName": "lab", "ImageVersion": "1"})


def sha384(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


def test_layout_byte_by_byte() -> None:
    data = pack(IMAGE)
    assert data[:4] == b"\x2eeif"
    version, flags, memory, cpus, reserved, sections = struct.unpack_from(">HHQQHH", data, 4)
    assert (version, flags, memory, cpus, reserved, sections) == (4, 0, 1 << 30, 2, 0, 5)
    offsets = struct.unpack_from(">32Q", data, 28)
    sizes = struct.unpack_from(">32Q", data, 284)
    assert offsets[0] == 548
    assert sizes[:2] == (6, 22)
    assert offsets[1] == 548 + 12 + 6
    assert not any(offsets[5:])
    types = [struct.unpack_from(">HHQ", data, offset) for offset in offsets[:5]]
    assert [kind for kind, _, _ in types] == [1, 2, 5, 3, 3]
    assert [size for _, _, size in types] == list(sizes[:5])
    assert data[offsets[3] + 12 : offsets[3] + 16] == b"init"
    assert offsets[4] + 12 + 3 == len(data)


def test_checksum_covers_everything_but_itself() -> None:
    data = pack(IMAGE)
    assert struct.unpack_from(">I", data, 544)[0] == zlib.crc32(data[:544] + data[548:])


def test_measurements_follow_the_format() -> None:
    line = b"console=ttyS0 reboot=k"
    zero = bytes(48)
    assert measure(IMAGE) == {
        0: sha384(zero + sha384(b"kernel" + line + b"init" + b"app")),
        1: sha384(zero + sha384(b"kernel" + line + b"init")),
        2: sha384(zero + sha384(b"app")),
    }


def test_metadata_is_not_measured_and_everything_else_is() -> None:
    assert measure(replace(IMAGE, metadata={})) == measure(IMAGE)
    for changed in (
        replace(IMAGE, kernel=b"kernel2"),
        replace(IMAGE, command_line="quiet"),
        replace(IMAGE, ramdisks=(b"init2", b"app")),
        replace(IMAGE, ramdisks=(b"init", b"app2")),
    ):
        assert measure(changed)[0] != measure(IMAGE)[0]
    assert measure(replace(IMAGE, ramdisks=(b"init", b"app2")))[1] == measure(IMAGE)[1]
    assert measure(replace(IMAGE, ramdisks=(b"init2", b"app")))[2] == measure(IMAGE)[2]


def test_measurements_print_as_nitro_cli_does() -> None:
    printed = measurements_json(measure(IMAGE))["Measurements"]
    assert list(printed) == ["HashAlgorithm", "PCR0", "PCR1", "PCR2"]
    assert bytes.fromhex(printed["PCR2"]) == measure(IMAGE)[2]


@given(
    st.builds(
        EnclaveImage,
        st.binary(),
        st.text(st.characters(codec="ascii")),
        st.lists(st.binary(), max_size=4).map(tuple),
        st.dictionaries(st.text(), st.integers() | st.text()),
    )
)
def test_unpack_is_the_inverse_of_pack(image: EnclaveImage) -> None:
    assert unpack(pack(image)) == image


@given(st.integers(min_value=0), st.integers(0, 7))
def test_any_flipped_bit_is_noticed(position: int, bit: int) -> None:
    data = bytearray(pack(IMAGE))
    data[position % len(data)] ^= 1 << bit
    with pytest.raises(EifError):
        unpack(bytes(data))


def with_checksum(data: bytearray) -> bytes:
    struct.pack_into(">I", data, 544, zlib.crc32(data[:544] + data[548:]))
    return bytes(data)


@pytest.mark.parametrize(
    ("offset", "layout", "value", "why"),
    [
        (548, ">H", 9, "unknown type"),
        (548, ">H", 2, "missing"),
        (552, ">Q", 1 << 40, "truncated"),
        (28, ">Q", 1 << 40, "outside"),
        (28, ">Q", 4, "outside"),
    ],
)
def test_a_lying_header_is_refused(offset: int, layout: str, value: int, why: str) -> None:
    data = bytearray(pack(IMAGE))
    struct.pack_into(layout, data, offset, value)
    with pytest.raises(EifError) as caught:
        unpack(with_checksum(data))
    assert why in caught.value.why


def test_what_is_no_image_is_refused() -> None:
    for data in (b"", b".eif", bytes(1000)):
        with pytest.raises(EifError):
            unpack(data)


def test_too_many_ramdisks_are_refused() -> None:
    with pytest.raises(EifError):
        pack(replace(IMAGE, ramdisks=(b"",) * 30))
