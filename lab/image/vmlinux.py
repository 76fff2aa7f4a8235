"""The uncompressed kernel inside a bzImage (Documentation/arch/x86/boot.rst of Linux).

QEMU starts an uncompressed ``vmlinux`` through its PVH entry. Under emulation that saves the seconds in which the
kernel would unpack itself, and with it q35 boots as fast as microvm.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable
from typing import Final

from lab.image.errors import ImageError

Decompress = Callable[[bytes], bytes]

_BOOT_MAGIC: Final = b"HdrS"
_BOOT_MAGIC_OFFSET: Final = 0x202
_SETUP_SECTORS_OFFSET: Final = 0x1F1
_VERSION_OFFSET: Final = 0x206
_PAYLOAD_OFFSET: Final = 0x248
_PAYLOAD_PROTOCOL: Final = 0x0208  # payload_offset and payload_length exist since boot protocol 2.08
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"


def extract(bzimage: bytes, *, zstd: Decompress) -> bytes:
    """Return the ELF image inside a bzImage.

    Args:
        bzimage: The file ``/boot/vmlinuz-…``.
        zstd: Decompresses Zstandard, which Python 3.11 cannot.

    Raises:
        ImageError: It is not a bzImage, or its payload has an unknown compression.
    """
    if bzimage[_BOOT_MAGIC_OFFSET : _BOOT_MAGIC_OFFSET + 4] != _BOOT_MAGIC or len(bzimage) < _PAYLOAD_OFFSET + 8:
        raise ImageError("cannot read the kernel", why="it is no x86 bzImage")
    (version,) = struct.unpack_from("<H", bzimage, _VERSION_OFFSET)
    if version < _PAYLOAD_PROTOCOL:
        raise ImageError(
            "cannot read the kernel", why=f"its boot protocol {version >> 8}.{version & 255} is older than 2.8"
        )
    offset, length = struct.unpack_from("<II", bzimage, _PAYLOAD_OFFSET)
    start = ((bzimage[_SETUP_SECTORS_OFFSET] or 4) + 1) * 512 + offset
    vmlinux = _decompressor(bzimage[start : start + 8], zstd)(bzimage[start : start + length])
    if not vmlinux.startswith(b"\x7fELF"):
        raise ImageError("cannot read the kernel", why="its payload is not an ELF image")
    return vmlinux


def _decompressor(magic: bytes, zstd: Decompress) -> Decompress:
    """Decompress by the payload's first bytes. Four bytes of length follow, which one-shot calls would refuse."""
    if magic.startswith(_ZSTD_MAGIC):
        return lambda data: zstd(data[:-4])
    if magic.startswith(b"\x1f\x8b"):
        return lambda data: gzip.decompress(data[:-4])
    if magic.startswith(b"\xfd7zXZ\0"):
        return lambda data: lzma.LZMADecompressor().decompress(data)
    if magic.startswith(b"BZh"):
        return lambda data: bz2.BZ2Decompressor().decompress(data)
    raise ImageError("cannot read the kernel", why=f"its payload begins with {magic[:4].hex()}, an unknown compression")
