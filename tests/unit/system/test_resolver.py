"""resolv.conf: read, written in every kind of place, restored."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from wgvsock.runtime.journal import Undo
from wgvsock.system import resolver
from wgvsock.system.errors import ResolverError
from wgvsock.system.resolver import ResolverSettings

SETTINGS = ResolverSettings((ip_address("10.96.0.10"), ip_address("fd00::10")), ("a.b", "b"), ("ndots:5",))
TEXT = "nameserver 10.96.0.10\nnameserver fd00::10\nsearch a.b b\noptions ndots:5\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "resolv.conf"


def install(path: Path) -> Undo:
    recorded: list[Undo] = []

    def record(undo: Undo) -> Undo:
        recorded.append(undo)
        return undo

    resolver.install(str(path), SETTINGS, record)
    (undo,) = recorded
    return undo


def put_back(undo: Undo) -> None:
    value: Any = json.loads(json.dumps(undo.value))  # as it comes out of a journal

    async def perform() -> None:
        await resolver.performers()[undo.kind](undo.target, value)

    asyncio.run(perform())


def test_parse() -> None:
    text = (
        "# comment\n; another\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\nnameserver nonsense\nnameserver\n"
        "domain one\nsearch two three\noptions ndots:5 edns0\noptions rotate\nsortlist 1.2.3.4\n"
    )
    assert resolver.parse(text) == ResolverSettings(
        (ip_address("10.0.0.1"),), ("two", "three"), ("ndots:5", "edns0", "rotate")
    )


def test_search_domains_lose_the_root_s_dot() -> None:
    assert resolver.parse("search corp.example.com. . team_a.example.com\n").search == (
        "corp.example.com",
        "team_a.example.com",
    )


def test_behind_the_stub_of_systemd_resolved_are_the_servers_that_it_asks(path: Path, tmp_path: Path) -> None:
    resolved = tmp_path / "resolved.conf"
    stub = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch stub\n"
    path.write_text(stub)
    assert resolver.read(str(path), str(resolved)) == resolver.parse(stub)  # a container: the stub is not its own
    resolved.write_text("nameserver 10.0.0.2\nsearch corp.example.com\n")
    assert resolver.read(str(path), str(resolved)) == ResolverSettings((ip_address("10.0.0.2"),), ("corp.example.com",))
    path.write_text(stub + "nameserver 10.0.0.3\n")  # somebody named another one, too
    assert resolver.read(str(path), str(resolved)).servers[1:] == (ip_address("10.0.0.3"),)


def test_what_is_written_reads_back_the_same() -> None:
    assert resolver.parse(resolver.render(SETTINGS)) == SETTINGS
    assert resolver.parse(resolver.render(ResolverSettings())) == ResolverSettings()


def test_read(path: Path) -> None:
    assert resolver.read(str(path)) == ResolverSettings()
    path.write_text(TEXT)
    assert resolver.read(str(path)) == SETTINGS


def test_of_a_huge_file_whole_lines_are_read(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for size in range(40):
        path.write_text("nameserver 10.0.0.1\n" + "#" * (65_480 + size) + "\nnameserver 10.0.0.123\n" * 10_000)
        assert set(map(str, resolver.read(str(path)).servers)) <= {"10.0.0.1", "10.0.0.123"}
    assert caplog.messages[0] == f"{path} is too long: only its first 65536 bytes are read"


def test_a_huge_file_is_not_replaced(path: Path) -> None:
    path.write_text("#" * 65_537)
    with pytest.raises(ResolverError, match="more than 65536 bytes") as caught:
        install(path)
    assert "resolv_conf" in caught.value.fix
    assert path.read_text() == "#" * 65_537


def test_a_file_that_cannot_be_read(path: Path) -> None:
    path.mkdir()
    with pytest.raises(ResolverError) as caught:
        resolver.read(str(path))
    assert caught.value.why == "it is not a regular file"


def test_a_fifo_keeps_nobody_waiting(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(ResolverError) as caught:
        resolver.read(str(path))
    assert caught.value.why == "it is not a regular file"
    with pytest.raises(ResolverError) as caught:
        install(path)
    assert caught.value.why == "it is not a regular file"


def test_a_file_is_replaced_and_put_back(path: Path) -> None:
    path.write_bytes(b"nameserver 1.1.1.1 # \xff\n")
    undo = install(path)
    assert path.read_text().endswith(TEXT)
    assert not undo.in_namespace
    put_back(undo)
    assert path.read_bytes() == b"nameserver 1.1.1.1 # \xff\n"


def test_no_file_before_is_no_file_after(path: Path) -> None:
    undo = install(path)
    assert path.exists()
    put_back(undo)
    assert not path.exists()
    put_back(undo)


def test_a_symbolic_link_is_replaced_and_put_back(path: Path) -> None:
    target = path.with_name("stub")
    target.write_text("nameserver 127.0.0.53\n")
    path.symlink_to(target)
    undo = install(path)
    assert not path.is_symlink()
    assert target.read_text() == "nameserver 127.0.0.53\n"
    put_back(undo)
    assert path.is_symlink()
    assert path.readlink() == target


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EROFS, errno.EACCES, errno.EXDEV])
def test_a_bind_mount_is_written_through(path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    path.write_text("a longer text than the one that comes in its place " * 10)
    inode = path.stat().st_ino

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(code, "refused")

    monkeypatch.setattr(Path, "replace", refuse)
    undo = install(path)
    assert path.stat().st_ino == inode
    assert path.read_text().endswith(TEXT)
    assert [entry.name for entry in path.parent.iterdir()] == ["resolv.conf"]
    put_back(undo)
    assert path.read_text().startswith("a longer text")


def test_a_place_that_cannot_be_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(ResolverError) as caught:
        install(path)
    assert caught.value.why == "No space left on device"
    with pytest.raises(ResolverError, match="cannot restore"):
        put_back(Undo("resolv_conf", str(path), {"text": "x"}))
