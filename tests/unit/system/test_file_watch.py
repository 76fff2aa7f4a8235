"""A path can be many things: written in place, replaced, a link to a foreign file, a bind mount, or missing."""

from __future__ import annotations

import ctypes
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wgvsock.system import file_watch
from wgvsock.system.file_watch import FileWatch


class Bench:
    """/etc/resolv.conf as a link through another to /run/…/stub, in a folder of the test's."""

    def __init__(self, folder: Path) -> None:
        self.etc, self.run = folder / "etc", folder / "run"
        self.etc.mkdir()
        self.run.mkdir()
        self.path = self.etc / "resolv.conf"
        self.target = self.run / "stub"
        self.target.write_text("nameserver 192.0.2.1\n")
        (self.run / "link").symlink_to("stub")

    def replace(self, path: Path) -> None:
        new = path.with_name(".new")
        new.write_text("nameserver 192.0.2.2\n")
        new.replace(path)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def watch(bench: Bench) -> Iterator[Callable[[], FileWatch]]:
    made: list[FileWatch] = []

    def open_watch() -> FileWatch:
        made.append(FileWatch(str(bench.path)))
        return made[-1]

    yield open_watch
    for each in made:
        each.close()


def heard(subject: FileWatch) -> bool:
    """The kernel queues an event before the call that causes it returns."""
    readable, _, _ = select.select([subject], [], [], 0)
    return bool(readable) and subject.drain()


def test_a_plain_file(bench: Bench, watch: Callable[[], FileWatch]) -> None:
    bench.path.write_text("nameserver 192.0.2.1\n")
    subject = watch()
    assert not heard(subject)
    with bench.path.open("a") as file:
        file.write("nameserver 192.0.2.3\n")
        file.flush()
        assert heard(subject)
    assert heard(subject)  # closed: it is whole now
    for change in (
        lambda: bench.replace(bench.path),
        lambda: bench.path.write_text(""),  # the new one is watched, too
        bench.path.unlink,
        lambda: bench.path.write_text("nameserver 192.0.2.1\n"),
        lambda: bench.path.write_text("nameserver 192.0.2.2\n"),
    ):
        change()
        assert heard(subject)
        assert not heard(subject)


def test_a_link_of_links(bench: Bench, watch: Callable[[], FileWatch]) -> None:
    bench.path.symlink_to(bench.run / "link")
    subject = watch()
    for change in (
        lambda: bench.target.write_text("nameserver 192.0.2.2\n"),
        lambda: bench.replace(bench.target),
        lambda: bench.target.write_text(""),
        lambda: bench.replace(bench.run / "link"),  # a file in the place of the second link
    ):
        change()
        assert heard(subject)
    other = bench.run / "other"
    other.write_text("")
    assert not heard(subject)
    bench.path.unlink()
    bench.path.symlink_to(other)
    assert heard(subject)
    bench.target.write_text("nobody's")
    assert not heard(subject)
    other.write_text("ours")
    assert heard(subject)


def test_what_happens_beside_it_is_none_of_its_business(bench: Bench, watch: Callable[[], FileWatch]) -> None:
    bench.path.write_text("")
    subject = watch()
    (bench.etc / "hosts").write_text("127.0.0.1 localhost\n")
    (bench.etc / "hosts").unlink()
    assert not heard(subject)


def test_a_file_that_is_mounted_there_has_events_of_its_own_alone(bench: Bench, watch: Callable[[], FileWatch]) -> None:
    """A hard link as a stand-in: written under another name, in an unwatched folder."""
    os.link(bench.target, bench.path)
    subject = watch()
    bench.target.write_text("nameserver 192.0.2.9\n")
    assert heard(subject)


def test_a_folder_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    subject = FileWatch(str(tmp_path / "none" / "resolv.conf"))
    assert not heard(subject)
    subject.close()


def test_a_link_to_itself_ends(bench: Bench, watch: Callable[[], FileWatch]) -> None:
    bench.path.symlink_to("resolv.conf")
    assert not heard(watch())


def test_events_that_were_lost_are_news(bench: Bench, watch: Callable[[], FileWatch]) -> None:
    subject = watch()
    assert subject._concerns(-1, 0x4000, b"")


def test_a_kernel_without_inotify_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def inotify_init1(self, flags: int) -> int:
            ctypes.set_errno(24)
            return -1

    monkeypatch.setattr(file_watch, "_libc", Refusing())
    with pytest.raises(OSError, match="Too many open files"):
        FileWatch("/etc/resolv.conf")
