"""The resolver's configuration, resolv.conf(5): read on the relay, written in the enclave, and restored afterwards."""

from __future__ import annotations

import errno
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from wgvsock.addresses import IpAddress
from wgvsock.runtime.journal import Performer, Record, Undo
from wgvsock.runtime.private import read_beginning
from wgvsock.system.errors import ResolverError

RESOLV_CONF: Final = "/etc/resolv.conf"
RESOLVED_CONF: Final = "/run/systemd/resolve/resolv.conf"
"""The servers that systemd-resolved queries, for programs that cannot use its stub (systemd-resolved.service(8))."""

_STUBS: Final = frozenset({ip_address("127.0.0.53"), ip_address("127.0.0.54")})
"""Where the stub listens: on this machine's loopback, which the enclave cannot reach."""

_MAX_BYTES: Final = 65536
"""glibc reads three servers and 256 characters of search list from it. A longer file is something else."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ResolverSettings:
    """The contents of resolv.conf(5). Addresses with a zone (``%eth0``) are left out: they mean nothing elsewhere."""

    servers: tuple[IpAddress, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def parse(text: str) -> ResolverSettings:
    """Parse the lines ``nameserver``, ``search`` or ``domain`` (the last one counts), and ``options``."""
    servers: list[IpAddress] = []
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    for line in text.splitlines():
        match line.split():
            case ["nameserver", address, *_] if "%" not in address:
                with suppress(ValueError):
                    servers.append(ip_address(address))
            case ["search" | "domain", *names]:
                # A search domain is absolute with or without the final dot, and the domain "." alone is useless.
                search = tuple(name for word in names if (name := word.removesuffix(".")))
            case ["options", *names]:
                options += tuple(names)
    return ResolverSettings(tuple(servers), search, options)


def render(settings: ResolverSettings) -> str:
    """Format the text of the file."""
    lines = ["# written by wgvsock from what the relay assigned"]
    lines += [f"nameserver {server}" for server in settings.servers]
    if settings.search:
        lines.append(f"search {' '.join(settings.search)}")
    if settings.options:
        lines.append(f"options {' '.join(settings.options)}")
    return "\n".join(lines) + "\n"


def read(path: str = RESOLV_CONF, resolved: str = RESOLVED_CONF) -> ResolverSettings:
    """Read a resolv.conf. A missing file counts as empty.

    If it names only systemd-resolved's stub, the servers behind the stub are read instead, as kubelet and Docker do.

    Args:
        path: The file.
        resolved: The file in which systemd-resolved lists the servers behind its stub.

    Raises:
        ResolverError: It cannot be read.
    """
    settings = _read(path)
    if settings.servers and _STUBS.issuperset(settings.servers):
        return _read(resolved) if Path(resolved).exists() else settings
    return settings


def _read(path: str) -> ResolverSettings:
    try:
        content = read_beginning(Path(path), _MAX_BYTES + 1)
    except FileNotFoundError:
        return ResolverSettings()
    except OSError as error:
        raise ResolverError(
            f"cannot read {path}", why=error.strerror or str(error), fix="make it a regular file that we may read"
        ) from error
    if len(content) > _MAX_BYTES:
        content = content[:_MAX_BYTES].rpartition(b"\n")[0]  # half a line could name another server
        _log.warning("%s is too long: only its first %d bytes are read", path, _MAX_BYTES)
    return parse(content.decode(errors="replace"))


def install(path: str, settings: ResolverSettings, record: Record) -> None:
    """Write a resolv.conf atomically. A symbolic link is replaced. A bind mount is written in place.

    Args:
        path: The file.
        settings: What to write.
        record: Takes the undo before anything is changed.

    Raises:
        ResolverError: It cannot be written.
    """
    try:
        record(Undo("resolv_conf", path, _snapshot(Path(path)), in_namespace=False))
        _replace(Path(path), render(settings))
    except OSError as error:
        raise ResolverError(
            f"cannot write {path}",
            why=error.strerror or str(error),
            fix='make it writable, or set "resolv_conf" to another path, or to "" to leave DNS alone',
        ) from error


def performers() -> dict[str, Performer]:
    """The function that undoes this module's change, for a `Journal`."""
    return {"resolv_conf": _restore}


async def _restore(path: str, before: dict[str, Any]) -> None:
    try:
        _put_back(Path(path), before)
    except OSError as error:
        raise ResolverError(
            f"cannot restore {path}", why=error.strerror or str(error), fix="write it by hand"
        ) from error


def _put_back(path: Path, before: dict[str, Any]) -> None:
    if "link" in before:
        path.unlink(missing_ok=True)
        path.symlink_to(before["link"])
    elif "text" in before:
        _replace(path, before["text"])
    else:
        path.unlink(missing_ok=True)


def _snapshot(path: Path) -> dict[str, Any]:
    """What is at the path: a link and its target, a text, or nothing."""
    if path.is_symlink():
        return {"link": str(path.readlink())}
    try:
        content = read_beginning(path, _MAX_BYTES + 1)
    except FileNotFoundError:
        return {}
    if len(content) > _MAX_BYTES:  # it would go into the journal, which is rewritten with every change
        raise OSError(errno.EFBIG, f"the present file has more than {_MAX_BYTES} bytes and could not be restored")
    return {"text": content.decode(errors="surrogateescape")}


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.wgvsock")
    try:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        # A container runtime mounts the file itself: it cannot be renamed over (EBUSY), and its directory may be
        # read-only (EROFS) or not ours (EACCES). The file is then written in place.
        if error.errno not in {errno.EBUSY, errno.EROFS, errno.EACCES, errno.EXDEV} or path.is_symlink():
            raise
        with path.open("r+", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.truncate()
            os.fsync(file.fileno())
