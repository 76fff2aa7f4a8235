"""Private files are made private. Anything else in their place is refused, without waiting for it."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from wgvsock.runtime import private
from wgvsock.runtime.private import NotPrivateError

STRANGER = 4242


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def as_stranger(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """When called, the process appears to run as another user than the creator of the files."""
    return lambda: monkeypatch.setattr(os, "geteuid", lambda: STRANGER)


# The directory.


def test_a_directory_is_made_for_us_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    private.make_directory(path)
    private.make_directory(path)
    assert mode_of(path) == 0o700


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o2750, 0o1700])
def test_a_directory_that_a_group_may_look_into(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    private.make_directory(tmp_path)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o755, 0o701, 0o770, 0o704])
def test_a_directory_that_is_open_to_others(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(NotPrivateError, match=f"its mode is {mode:04o}") as caught:
        private.make_directory(tmp_path)
    assert caught.value.fix.startswith(f"chmod 700 {tmp_path}, or mount")


def test_a_directory_of_another_user(tmp_path: Path, as_stranger: Callable[[], None]) -> None:
    as_stranger()
    with pytest.raises(
        NotPrivateError, match=f"belongs to user {os.getuid()}, and we run as user {STRANGER}"
    ) as caught:
        private.make_directory(tmp_path)
    assert f"chown {STRANGER} {tmp_path}" in caught.value.fix


def test_a_link_to_a_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(NotPrivateError, match="symbolic link") as caught:
        private.make_directory(tmp_path / "link")
    assert str(tmp_path / "real") in caught.value.fix


def test_something_else_than_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="exists"):
        private.make_directory(tmp_path / "file")


# Our files.


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    private.write(path, b"new")
    assert private.read(path) == b"new"
    assert mode_of(path) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_what_stands_in_the_way_is_not_written_to(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("theirs")
    victim.chmod(0o666)
    (tmp_path / "linked.new").symlink_to(victim)
    (tmp_path / "plain.new").hardlink_to(victim)
    for name in ("linked", "plain"):
        private.write(tmp_path / name, b"secret")
        assert not (tmp_path / name).is_symlink()
        assert private.read(tmp_path / name) == b"secret"
    assert victim.read_text() == "theirs"


def test_a_new_file_replaces_nothing(tmp_path: Path) -> None:
    private.create(tmp_path / "x", b"first")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("x", "link"):
        with pytest.raises(FileExistsError):
            private.create(tmp_path / name, b"second")
    assert private.read(tmp_path / "x") == b"first"
    assert not (tmp_path / "nowhere").exists()


def test_a_full_disk_leaves_no_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really_open = os.fdopen

    def full(descriptor: int, mode: str) -> object:
        os.close(descriptor)
        return really_open(os.open("/dev/full", os.O_WRONLY), mode)

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(OSError, match="No space left") as caught:
        private.create(tmp_path / "x", b"key")
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_directory_in_the_place_of_a_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(IsADirectoryError):
        private.write(tmp_path / "x", b"key")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


OPENERS: list[Callable[[Path], object]] = [private.read, private.open_lock]


@pytest.mark.parametrize("open_file", OPENERS)
@pytest.mark.parametrize("mode", [0o604, 0o640, 0o622, 0o601])
def test_our_file_that_others_can_use(tmp_path: Path, open_file: Callable[[Path], object], mode: int) -> None:
    path = tmp_path / "x"
    path.touch()
    path.chmod(mode)
    with pytest.raises(NotPrivateError, match=f"x: its mode is {mode:04o}") as caught:
        open_file(path)
    assert caught.value.fix.endswith(f"remove {path}")


@pytest.mark.parametrize("open_file", OPENERS)
def test_a_file_of_another_user(
    tmp_path: Path, open_file: Callable[[Path], object], as_stranger: Callable[[], None]
) -> None:
    private.create(tmp_path / "x", b"")
    as_stranger()
    with pytest.raises(NotPrivateError, match="x: it belongs to user"):
        open_file(tmp_path / "x")


@pytest.mark.parametrize("open_file", [*OPENERS, private.read_secret])
def test_nothing_is_waited_for(tmp_path: Path, open_file: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "x", mode=0o600)
    with pytest.raises(NotPrivateError, match="x is not a regular file"):
        open_file(tmp_path / "x")


def test_the_beginning_of_anybodys_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"content")
    path.chmod(0o666)
    assert private.read_beginning(path, 3) == b"con"
    (tmp_path / "link").symlink_to(path)
    assert private.read_beginning(tmp_path / "link", 100) == b"content"
    os.mkfifo(tmp_path / "fifo")
    for other in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="it is not a regular file"):
            private.read_beginning(other, 100)
    with pytest.raises(FileNotFoundError):
        private.read_beginning(tmp_path / "none", 100)


@pytest.mark.parametrize("open_file", OPENERS)
@pytest.mark.parametrize("target", ["real", "nowhere"])
def test_a_link_in_the_place_of_our_file(tmp_path: Path, open_file: Callable[[Path], object], target: str) -> None:
    private.create(tmp_path / "real", b"")
    (tmp_path / "x").symlink_to(target)
    with pytest.raises(NotPrivateError, match="x is a symbolic link"):
        open_file(tmp_path / "x")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("open_file", OPENERS)
def test_other_failures_keep_their_words(tmp_path: Path, open_file: Callable[[Path], object]) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "x"))
        with pytest.raises(OSError, match="No such device") as caught:
            open_file(tmp_path / "x")
    assert private.why(caught.value) == "No such device or address"
    assert private.fix(caught.value, "otherwise") == "otherwise"


def test_no_descriptor_is_left_of_what_was_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for open_file in (*OPENERS, private.read_secret):
        with pytest.raises(NotPrivateError):
            open_file(tmp_path / "x")
    with pytest.raises(NotPrivateError):
        private.read_secret(tmp_path)  # a directory can be opened, and made no file of
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_lock_is_made_once(tmp_path: Path) -> None:
    for _ in range(2):
        os.close(private.open_lock(tmp_path / "lock"))
    assert mode_of(tmp_path / "lock") == 0o600


@pytest.mark.parametrize(("read", "limit"), [(private.read, private.MAX_BYTES), (private.read_secret, 1024)])
def test_no_more_is_read_than_such_a_file_holds(tmp_path: Path, read: Callable[[Path], bytes], limit: int) -> None:
    private.create(tmp_path / "x", b"x" * limit)
    assert len(read(tmp_path / "x")) == limit
    os.truncate(tmp_path / "x", 1 << 40)  # a hole costs nothing
    with pytest.raises(NotPrivateError, match=f"longer than {limit} bytes"):
        read(tmp_path / "x")


# Secrets that somebody else puts there.


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o440, 0o640])
def test_a_secret_as_kubernetes_mounts_it(tmp_path: Path, mode: int) -> None:
    versions = tmp_path / "..2026_11_23"
    versions.mkdir(mode=0o755)
    (versions / "signing.key").write_bytes(b"key")
    (versions / "signing.key").chmod(mode)
    (tmp_path / "..data").symlink_to(versions.name)
    (tmp_path / "signing.key").symlink_to("..data/signing.key")
    tmp_path.chmod(0o1777)
    assert private.read_secret(tmp_path / "signing.key") == b"key"


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o602, 0o444])
def test_a_secret_that_others_can_use(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "real"
    path.write_bytes(b"key")
    path.chmod(mode)
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(NotPrivateError, match=f"its mode is {mode:04o}") as caught:
        private.read_secret(tmp_path / "link")
    assert "defaultMode: 0400" in caught.value.fix


def test_whose_secret_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_stranger: Callable[[], None]) -> None:
    private.create(tmp_path / "x", b"key")
    as_stranger()
    monkeypatch.setattr(private, "_ROOT", os.getuid())
    assert private.read_secret(tmp_path / "x") == b"key"  # root's: an orchestrator put it there
    monkeypatch.setattr(private, "_ROOT", STRANGER + 1)
    with pytest.raises(NotPrivateError, match="belongs to user") as caught:
        private.read_secret(tmp_path / "x")
    assert f"chown {STRANGER}" in caught.value.fix
