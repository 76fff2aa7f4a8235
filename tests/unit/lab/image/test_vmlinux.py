from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable

import pytest

from lab.image.errors import ImageError
from lab.image.vmlinux import extract

ELF = b"\x7fELF" + bytes(range(256)) * 8
SETUP_SECTORS = 3
PAYLOAD_OFFSET = 0x40


def no_zstd(_: bytes) -> bytes:
    raise AssertionError("not asked for")


def bzimage(payload: bytes, *, version: int = 0x020F, setup_sectors: int = SETUP_SECTORS) -> bytes:
    """A boot sector, the setup code, then the protected-mode part with the payload (boot.rst of Linux)."""
    image = bytearray(((setup_sectors or 4) + 1) * 512 + PAYLOAD_OFFSET)
    image[0x1F1] = setup_sectors
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    struct.pack_into("<II", image, 0x248, PAYLOAD_OFFSET, len(payload))
    return bytes(image) + payload + b"what follows the payload"


def with_length(packed: bytes) -> bytes:
    """The build appends the uncompressed length to each stream (scripts/Makefile.lib, size_append)."""
    return packed + struct.pack("<I", len(ELF))


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bzip2", "xz"])
def test_extracts_what_python_can_decompress(compress: Callable[[bytes], bytes]) -> None:
    assert extract(bzimage(with_length(compress(ELF))), zstd=no_zstd) == ELF


def test_zstd_is_left_to_the_caller_without_the_length() -> None:
    packed = b"\x28\xb5\x2f\xfd" + b"frame"
    seen: list[bytes] = []

    def zstd(data: bytes) -> bytes:
        seen.append(data)
        return ELF

    assert extract(bzimage(with_length(packed)), zstd=zstd) == ELF
    assert seen == [packed]


def test_zero_setup_sectors_mean_four() -> None:
    assert extract(bzimage(with_length(gzip.compress(ELF)), setup_sectors=0), zstd=no_zstd) == ELF


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (b"", "no x86 bzImage"),
        (bytes(4096), "no x86 bzImage"),
        (bzimage(gzip.compress(ELF), version=0x0207), "boot protocol 2.7"),
        (bzimage(b"\x02!LZ4"), "unknown compression"),
        (bzimage(with_length(gzip.compress(b"not ELF"))), "not an ELF"),
    ],
)
def test_refuses_what_it_does_not_know(image: bytes, why: str) -> None:
    with pytest.raises(ImageError) as caught:
        extract(image, zstd=no_zstd)
    assert why in caught.value.why
