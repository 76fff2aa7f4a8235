"""Reproducible initramfs archives: the "newc" cpio format, as Linux documents it in early-userspace/buffer-format.rst.

The same tree gives the same bytes: entries are sorted, every timestamp is 0, every owner is root, inodes are counted.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"
_FIELDS: Final = 13


@dataclass(frozen=True, slots=True)
class File:
    """A regular file's content and permissions."""

    data: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link's target."""

    target: str


@dataclass(frozen=True, slots=True)
class Directory:
    """A folder's permissions. Parents of other entries need not be listed."""

    mode: int = 0o755


@dataclass(frozen=True, slots=True)
class CharacterDevice:
    """A character device's numbers. The kernel opens /dev/console before init has mounted anything."""

    major: int
    minor: int
    mode: int = 0o600


Entry = File | Symlink | Directory | CharacterDevice


def pack(tree: Mapping[str, Entry]) -> bytes:
    """Return an archive of a tree whose keys are paths relative to the root, such as ``usr/bin/python3``."""
    complete = _with_parents(tree)
    parts: list[bytes] = []
    for inode, name in enumerate(sorted(complete), 1):
        mode, data, rdev = _encode(complete[name])
        _append(parts, name, data, inode=inode, mode=mode, rdev=rdev)
    _append(parts, _TRAILER, b"", inode=0, mode=0, rdev=(0, 0))
    return b"".join(parts)


def unpack(archive: bytes) -> dict[str, Entry]:
    """Return the tree of an archive that `pack` wrote, including parents.

    Raises:
        ValueError: It is not such an archive, or is truncated.
    """
    tree: dict[str, Entry] = {}
    offset = 0
    while True:
        header = archive[offset : offset + len(_MAGIC) + 8 * _FIELDS]
        if len(header) < len(_MAGIC) + 8 * _FIELDS or header[: len(_MAGIC)] != _MAGIC:
            raise ValueError(f"no newc header at byte {offset}")
        fields = [int(header[at : at + 8], 16) for at in range(len(_MAGIC), len(header), 8)]
        mode, size, major, minor, name_size = fields[1], fields[6], fields[9], fields[10], fields[11]
        start = offset + len(header)
        name = archive[start : start + name_size - 1].decode()
        start += name_size + -(start + name_size) % 4
        data = archive[start : start + size]
        if len(data) < size:
            raise ValueError(f"{name} is truncated")
        offset = start + size + -size % 4
        if name == _TRAILER:
            return tree
        tree[name] = _decode(mode, data, major, minor)


def _with_parents(tree: Mapping[str, Entry]) -> dict[str, Entry]:
    complete = dict(tree)
    for name in tree:
        parent = name.rpartition("/")[0]
        while parent and parent not in complete:
            complete[parent] = Directory()
            parent = parent.rpartition("/")[0]
    return complete


def _encode(entry: Entry) -> tuple[int, bytes, tuple[int, int]]:
    match entry:
        case File(data, mode):
            return stat.S_IFREG | mode, data, (0, 0)
        case Symlink(target):
            return stat.S_IFLNK | 0o777, target.encode(), (0, 0)
        case Directory(mode):
            return stat.S_IFDIR | mode, b"", (0, 0)
        case CharacterDevice(major, minor, mode):
            return stat.S_IFCHR | mode, b"", (major, minor)


def _decode(mode: int, data: bytes, major: int, minor: int) -> Entry:
    permissions = stat.S_IMODE(mode)
    if stat.S_ISREG(mode):
        return File(data, permissions)
    if stat.S_ISLNK(mode):
        return Symlink(data.decode())
    if stat.S_ISCHR(mode):
        return CharacterDevice(major, minor, permissions)
    return Directory(permissions)


def _append(parts: list[bytes], name: str, data: bytes, *, inode: int, mode: int, rdev: tuple[int, int]) -> None:
    """Append header, name and content, each padded to four bytes. Header fields are eight hex digits each."""
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, *rdev, len(encoded), 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields)
    parts.append(header + encoded + bytes(-(len(header) + len(encoded)) % 4))
    parts.append(data + bytes(-len(data) % 4))
