"""Files and directories that are private to us: creates them so, and refuses those that are not.

The contents of the runtime directory are acted upon (the journal) or secret (the signing key), so nobody else may write
or read them. The checks examine the opened file, never its name. Nothing in the place of a file can make us wait: a
FIFO is opened without blocking and refused.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 1 << 20
"""Bytes to read of our own file. A journal has a few hundred for each change, a key has 45."""

MAX_SECRET_BYTES: Final = 1024
"""Bytes to read of an operator's secret. A key in base64 has 45."""

_OURS_FORBIDS: Final = 0o077
_DIRECTORY_FORBIDS: Final = 0o027
_SECRET_FORBIDS: Final = 0o027
"""Forbidden mode bits: any access for others, and writing for the group. Reading by the group is a deliberate decision,
such as Kubernetes' for a Secret with ``fsGroup`` (mode 0440): every member of the group knows the secret."""

_ROOT: Final = 0
_OPEN: Final = os.O_CLOEXEC | os.O_NONBLOCK


class NotPrivateError(PermissionError):
    """Another user owns, or can read or write, a file that must be private to us.

    An OSError like all others that file operations raise. Callers turn it into their own errors.

    Args:
        why: What was found.
        fix: The command or setting that corrects it.
    """

    def __init__(self, why: str, fix: str) -> None:
        super().__init__(errno.EPERM, why)
        self.fix = fix


def why(error: OSError) -> str:
    """An error's text."""
    return error.strerror or str(error)


def fix(error: OSError, otherwise: str) -> str:
    """An error's own remedy, or `otherwise`."""
    return error.fix if isinstance(error, NotPrivateError) else otherwise


def make_directory(path: Path) -> None:
    """Create a directory with mode 0700, or check an existing one.

    Raises:
        NotPrivateError: It is a link, belongs to another user, is accessible to others, or writable for its group.
        OSError: It cannot be created.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_directory(path)


def check_directory(path: Path) -> None:
    """Check that a directory is private to us.

    Raises:
        NotPrivateError: As for `make_directory`.
        OSError: It is missing.
    """
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise NotPrivateError("it is a symbolic link", f"name the directory itself: {path.resolve()}")
    if status.st_uid != os.geteuid():
        raise NotPrivateError(_belongs_to(status.st_uid), f"chown {os.geteuid()} {path}, or name another directory")
    if status.st_mode & _DIRECTORY_FORBIDS:
        raise NotPrivateError(
            f"{_has_mode(status)}, so it is open to others",
            f"chmod 700 {path}, or mount a volume that is open to all one level higher, at {path.parent}",
        )


def open_lock(path: Path) -> int:
    """Open a lock file, creating it with mode 0600 if it is missing.

    Returns:
        Its descriptor.

    Raises:
        NotPrivateError: The path is not a regular file, belongs to another user, or is open to others.
        OSError: It cannot be opened.
    """
    return _open_ours(path, os.O_RDWR | os.O_CREAT)


def read(path: Path) -> bytes:
    """Read a file that `write` wrote. A file that another user could have written or read is refused.

    Returns:
        At most `MAX_BYTES` bytes.

    Raises:
        NotPrivateError: It is not a regular file, belongs to another user, is open to others, or is longer than
            `MAX_BYTES`.
        OSError: It is missing or cannot be read.
    """
    with os.fdopen(_open_ours(path, os.O_RDONLY), "rb") as file:
        return _read(file.fileno(), MAX_BYTES, path)


def read_secret(path: Path) -> bytes:
    """Read a secret that an operator, or Kubernetes, put at a configured path. Links are followed.

    Returns:
        At most `MAX_SECRET_BYTES` bytes.

    Raises:
        NotPrivateError: It is not a regular file, belongs neither to root nor to us, is accessible to others, is
            writable for its group, or is longer than `MAX_SECRET_BYTES`.
        OSError: It is missing or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | _OPEN)
    try:
        status = _regular(descriptor, path)
        if status.st_uid not in {_ROOT, os.geteuid()}:
            raise NotPrivateError(_belongs_to(status.st_uid), f"chown {os.geteuid()} {path}")
        if status.st_mode & _SECRET_FORBIDS:
            raise NotPrivateError(
                f"{_has_mode(status)}, so others can read or change it",
                f"chmod 600 {path}, or set defaultMode: 0400 for a Kubernetes Secret, then replace the key",
            )
        return _read(descriptor, MAX_SECRET_BYTES, path)
    finally:
        os.close(descriptor)


def read_beginning(path: Path, limit: int) -> bytes:
    """Read the beginning of a regular file, whoever owns it. A FIFO in its place must not block us.

    Returns:
        At most `limit` bytes.

    Raises:
        OSError: It is missing, cannot be read, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | _OPEN)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(limit)
    finally:
        os.close(descriptor)


def write(path: Path, content: bytes) -> None:
    """Replace a file atomically with one of mode 0600.

    Raises:
        OSError: The directory is missing or not writable, or the path is a directory. No temporary file remains.
    """
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)  # never write to a link or to a file with another mode
    create(temporary, content)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink()
        raise


def create(path: Path, content: bytes) -> None:
    """Write a new file of mode 0600.

    Raises:
        FileExistsError: The path exists, even if only as a dangling link.
        OSError: It cannot be written. No partial file remains.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError:
        path.unlink()
        raise


def _open_ours(path: Path, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | _OPEN, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotPrivateError(f"{path.name} is a symbolic link", _removal(path)) from None
        raise
    try:
        _check_ours(descriptor, path)
    except NotPrivateError:
        os.close(descriptor)
        raise
    return descriptor


def _check_ours(descriptor: int, path: Path) -> None:
    status = _regular(descriptor, path)
    if status.st_uid != os.geteuid():
        raise NotPrivateError(f"{path.name}: {_belongs_to(status.st_uid)}", _removal(path))
    if status.st_mode & _OURS_FORBIDS:
        raise NotPrivateError(f"{path.name}: {_has_mode(status)}, so others can read or write it", _removal(path))


def _regular(descriptor: int, path: Path) -> os.stat_result:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise NotPrivateError(f"{path.name} is not a regular file", _removal(path))
    return status


def _read(descriptor: int, limit: int, path: Path) -> bytes:
    content = b""
    while chunk := os.read(descriptor, limit + 1 - len(content)):
        content += chunk
    if len(content) > limit:
        raise NotPrivateError(f"{path.name} is longer than {limit} bytes", _removal(path))
    return content


def _belongs_to(user: int) -> str:
    return f"it belongs to user {user}, and we run as user {os.geteuid()}"


def _has_mode(status: os.stat_result) -> str:
    return f"its mode is {stat.S_IMODE(status.st_mode):04o}"


def _removal(path: Path) -> str:
    return f"find out who put it there, then remove {path}"
