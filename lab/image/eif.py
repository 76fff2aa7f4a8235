"""The enclave image format (EIF), version 4, and the PCRs that an image gets.

Facts from the public format library (https://github.com/aws/aws-nitro-enclaves-image-format): every number is
big-endian. Sections follow a 548-byte header, and each of them begins with a 12-byte header. A CRC-32 (IEEE) covers
everything but itself. The sections are kernel, command line, metadata (JSON), then ramdisks, then an optional
signature.

Measurements (AWS Nitro Enclaves user guide, "Where to get an enclave's measurements"), each ``SHA384(48 zero bytes ‖
SHA384(contents))`` over section contents alone, in file order:

* PCR0  kernel, command line, every ramdisk
* PCR1  kernel, command line, first ramdisk
* PCR2  every further ramdisk
* PCR8  the signing certificate (not written here: the laboratory does not sign images)
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

from lab.errors import LabError

MAGIC: Final = b".eif"
VERSION: Final = 4
MAX_SECTIONS: Final = 32
HEADER_SIZE: Final = 548
SECTION_HEADER_SIZE: Final = 12

DEFAULT_MEMORY: Final = 1 << 30  # bytes, as nitro-cli's builder writes it
DEFAULT_CPUS: Final = 2

_HEADER: Final = struct.Struct(f">4sHHQQHH{MAX_SECTIONS}Q{MAX_SECTIONS}QII")
_SECTION_HEADER: Final = struct.Struct(">HHQ")
_REGISTER_SIZE: Final = 48


class EifError(LabError):
    """A file is not an enclave image, or is damaged."""

    code = "WGV-E097"


class SectionType(IntEnum):
    """The type of a section."""

    KERNEL = 1
    COMMAND_LINE = 2
    RAMDISK = 3
    SIGNATURE = 4
    METADATA = 5


@dataclass(frozen=True, slots=True)
class EnclaveImage:
    """An image's contents.

    Attributes:
        kernel: The kernel that the loader starts.
        command_line: The kernel's, without a final NUL.
        ramdisks: The first is the boot ramdisk (init), the others are the application.
        metadata: ``ImageName``, ``ImageVersion``, ``BuildMetadata``, ``DockerInfo``, ``CustomMetadata``. Not measured.
    """

    kernel: bytes
    command_line: str
    ramdisks: tuple[bytes, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def pack(image: EnclaveImage) -> bytes:
    """Return the file.

    Raises:
        EifError: There are more ramdisks than a header has room for.
    """
    sections = [
        (SectionType.KERNEL, image.kernel),
        (SectionType.COMMAND_LINE, image.command_line.encode()),
        (SectionType.METADATA, json.dumps(image.metadata).encode()),
        *((SectionType.RAMDISK, ramdisk) for ramdisk in image.ramdisks),
    ]
    if len(sections) > MAX_SECTIONS:
        raise EifError("cannot write the image", why=f"it would have more than {MAX_SECTIONS} sections")
    offsets, offset = [], HEADER_SIZE
    for _, data in sections:
        offsets.append(offset)
        offset += SECTION_HEADER_SIZE + len(data)
    sizes = [len(data) for _, data in sections]
    header = _HEADER.pack(
        *(MAGIC, VERSION, 0, DEFAULT_MEMORY, DEFAULT_CPUS, 0, len(sections)), *_padded(offsets), *_padded(sizes), 0, 0
    )
    body = [part for kind, data in sections for part in (_SECTION_HEADER.pack(kind, 0, len(data)), data)]
    crc = _crc(header[:-4], body)
    return b"".join((header[:-4], struct.pack(">I", crc), *body))


def unpack(data: bytes) -> EnclaveImage:
    """Return the contents of a file.

    Raises:
        EifError: It is not an image, its checksum is wrong, or a section is missing or truncated.
    """
    if len(data) < HEADER_SIZE or not data.startswith(MAGIC):
        raise EifError("cannot read the image", why="it does not begin like an enclave image file")
    fields = _HEADER.unpack_from(data)
    count, crc = fields[6], fields[-1]
    if _crc(data[: HEADER_SIZE - 4], [data[HEADER_SIZE:]]) != crc:
        raise EifError("cannot read the image", why="its checksum is wrong")
    contents: dict[SectionType, list[bytes]] = {kind: [] for kind in SectionType}
    for offset in fields[7 : 7 + count]:
        kind, content = _section(data, offset)
        contents[kind].append(content)
    try:
        (kernel,) = contents[SectionType.KERNEL]
        (command_line,) = contents[SectionType.COMMAND_LINE]
        metadata = json.loads(contents[SectionType.METADATA][0]) if contents[SectionType.METADATA] else {}
        return EnclaveImage(kernel, command_line.decode(), tuple(contents[SectionType.RAMDISK]), metadata)
    except ValueError as error:
        raise EifError("cannot read the image", why=f"a section is missing or unreadable: {error}") from None


def measure(image: EnclaveImage) -> dict[int, bytes]:
    """Return PCR0, PCR1 and PCR2 of an unsigned image, 48 bytes each."""
    boot, application = image.ramdisks[:1], image.ramdisks[1:]
    common = (image.kernel, image.command_line.encode())
    return {0: _extend((*common, *boot, *application)), 1: _extend((*common, *boot)), 2: _extend(application)}


def measurements_json(measurements: Mapping[int, bytes]) -> dict[str, Any]:
    """Return the same as ``nitro-cli`` prints it, and as a Relay's policy expects it."""
    names = {f"PCR{number}": value.hex() for number, value in sorted(measurements.items())}
    return {"Measurements": {"HashAlgorithm": "Sha384 { ... }", **names}}


def _section(data: bytes, offset: int) -> tuple[SectionType, bytes]:
    if not HEADER_SIZE <= offset <= len(data) - SECTION_HEADER_SIZE:
        raise EifError("cannot read the image", why="a section lies outside the file")
    number, _, size = _SECTION_HEADER.unpack_from(data, offset)
    start = offset + SECTION_HEADER_SIZE
    if start + size > len(data):
        raise EifError("cannot read the image", why="a section is truncated")
    try:
        return SectionType(number), data[start : start + size]
    except ValueError:
        raise EifError("cannot read the image", why=f"it has a section of the unknown type {number}") from None


def _extend(contents: Iterable[bytes]) -> bytes:
    """Return the register's value after one extension of zero: the image is measured as one piece."""
    digest = hashlib.sha384()
    for content in contents:
        digest.update(content)
    return hashlib.sha384(bytes(_REGISTER_SIZE) + digest.digest()).digest()


def _padded(values: list[int]) -> list[int]:
    return values + [0] * (MAX_SECTIONS - len(values))


def _crc(header: bytes, body: Iterable[bytes]) -> int:
    crc = zlib.crc32(header)
    for part in body:
        crc = zlib.crc32(part, crc)
    return crc
