"""The resolver's configuration, resolv.conf(5): read on the relay, written in the enclave, put back afterwards."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from wgvsock.settings import IpAddress
from wgvsock.system.errors import ResolverError
from wgvsock.system.journal import Performer, Record, Undo

RESOLV_CONF: Final = "/etc/resolv.conf"
_MAX_BYTES: Final = 65536
"""glibc reads three servers and 256 characters of search list from it; a longer file is something else."""


@dataclass(frozen=True, slots=True)
class ResolverSettings:
    """What resolv.conf(5) says; addresses with a zone (``%eth0``) are left out, for they mean nothing elsewhere."""

    servers: tuple[IpAddress, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def parse(text: str) -> ResolverSettings:
    """Read the lines ``nameserver``, ``search`` (or ``domain``; the last one counts) and ``options``."""
    servers: list[IpAddress] = []
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    for line in text.splitlines():
        match line.split():
            case ["nameserver", address, *_] if "%" not in address:
                with suppress(ValueError):
                    servers.append(ip_address(address))
            case ["search" | "domain", *names]:
                search = tuple(names)
            case ["options", *names]:
                options += tuple(names)
    return ResolverSettings(tuple(servers), search, options)


def render(settings: ResolverSettings) -> str:
    """The file's text."""
    lines = ["# written by wgvsock from what the relay assigned"]
    lines += [f"nameserver {server}" for server in settings.servers]
    if settings.search:
        lines.append(f"search {' '.join(settings.search)}")
    if settings.options:
        lines.append(f"options {' '.join(settings.options)}")
    return "\n".join(lines) + "\n"


def read(path: str = RESOLV_CONF) -> ResolverSettings:
    """Read a resolv.conf; a missing one is an empty one.

    Raises:
        ResolverError: It cannot be read.
    """
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            return parse(file.read(_MAX_BYTES))
    except FileNotFoundError:
        return ResolverSettings()
    except OSError as error:
        raise ResolverError(f"cannot read {path}", why=error.strerror or str(error), fix="check its mode") from error


def install(path: str, settings: ResolverSettings, record: Record) -> None:
    """Write a resolv.conf: atomically; a symbolic link is replaced, a bind mount is written through.

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
    """The function that takes this module's change back, for a `Journal`."""
    return {"resolv_conf": _restore}


async def _restore(path: str, before: dict[str, Any]) -> None:
    try:
        _put_back(Path(path), before)
    except OSError as error:
        raise ResolverError(
            f"cannot put {path} back", why=error.strerror or str(error), fix="write it by hand"
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
    """What stands at the path: a link and its target, a text, or nothing."""
    if path.is_symlink():
        return {"link": str(path.readlink())}
    try:
        return {"text": path.read_text(encoding="utf-8", errors="surrogateescape")}
    except FileNotFoundError:
        return {}


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.wgvsock")
    try:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        # A container runtime mounts the file itself: it cannot be renamed over (EBUSY), and its directory can be
        # read only (EROFS) or not ours (EACCES); the file is written in place then.
        if error.errno not in {errno.EBUSY, errno.EROFS, errno.EACCES, errno.EXDEV} or path.is_symlink():
            raise
        with path.open("r+", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.truncate()
            os.fsync(file.fileno())
