from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from lab.image import packages
from lab.image.errors import PackageError
from lab.image.lock import GROUPS
from lab.image.packages import Lock, Pin, apt_download, cache_directory, fetch, read_lock, unpack

CONTENT = b"a package"
PIN = Pin("tool", "1.0-1", "pool/main/t/tool_1.0-1_amd64.deb", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
LOCK = Lock(("http://archive", "http://snapshot"), {"host": (PIN,)})


class Archive:
    def __init__(self, content: bytes = CONTENT, *, failing: str = "") -> None:
        self.asked: list[str] = []
        self.content = content
        self.failing = failing

    def download(self, items: Sequence[tuple[str, Path, str]]) -> None:
        for url, path, _ in items:
            self.asked.append(url)
            if self.failing and url.startswith(self.failing):
                raise PackageError("404")
            path.write_bytes(self.content)


def test_the_committed_pins_are_whole() -> None:
    lock = read_lock()
    assert set(lock.groups) == set(GROUPS)
    for group, pins in lock.groups.items():
        assert len({pin.name for pin in pins}) == len(pins) == len(GROUPS[group])
        for pin in pins:
            assert re.fullmatch(r"[0-9a-f]{64}", pin.sha256)
            assert pin.path.startswith("pool/main/")
            assert pin.path.endswith(".deb")
            assert pin.size > 0


@pytest.mark.parametrize(
    ("group", "name", "version"),
    [
        ("host", "qemu-system-x86", "1:10.0.2+ds"),
        ("host", "vhost-device-vsock", "0.3.0-2"),
        ("host-virtio", "qemu-system-x86", "1:11.1.3+ds"),
        ("host-virtio", "vhost-device-vsock", "0.3.0-2"),
        ("guest", "python3.11-minimal", "3.11.2"),
    ],
)
def test_the_versions_that_were_measured_are_pinned(group: str, name: str, version: str) -> None:
    (pin,) = [pin for pin in read_lock().groups[group] if pin.name == name]
    assert pin.version.startswith(version) or version in pin.version


def test_wheels_are_pinned_by_hash() -> None:
    lines = [line for line in packages.WHEELS_FILE.read_text().splitlines() if not line.startswith("#")]
    assert {line.partition("==")[0] for line in lines} >= {"cryptography", "cbor2", "pyroute2"}
    assert all(re.search(r"==\S+ --hash=sha256:[0-9a-f]{64}$", line) for line in lines)


def test_the_second_fetch_downloads_nothing(tmp_path: Path) -> None:
    archive = Archive()
    first = fetch([PIN], LOCK, tmp_path, archive.download)
    assert first[0].read_bytes() == CONTENT
    assert fetch([PIN], LOCK, tmp_path, archive.download) == first
    assert archive.asked == ["http://archive/pool/main/t/tool_1.0-1_amd64.deb"]


def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path: Path) -> None:
    archive = Archive()
    (path,) = fetch([PIN], LOCK, tmp_path, archive.download)
    path.write_bytes(b"half a pack")
    fetch([PIN], LOCK, tmp_path, archive.download)
    assert path.read_bytes() == CONTENT
    assert len(archive.asked) == 2


def test_what_left_the_archive_comes_from_the_snapshot(tmp_path: Path) -> None:
    archive = Archive(failing="http://archive")
    fetch([PIN], LOCK, tmp_path, archive.download)
    assert [url.split("/")[2] for url in archive.asked] == ["archive", "snapshot"]


def test_a_file_that_is_nowhere_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="404"):
        fetch([PIN], LOCK, tmp_path, Archive(failing="http://").download)


def test_another_content_than_the_pinned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError) as caught:
        fetch([PIN], LOCK, tmp_path, Archive(b"something else").download)
    assert "SHA-256" in caught.value.why


def test_apts_words_reach_the_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    helper = tmp_path / "apt-helper"
    helper.write_text("#!/bin/sh\necho \"$@\" > $(dirname $0)/called\necho 'E: 404 Not Found' >&2\nexit 100\n")
    helper.chmod(0o755)
    monkeypatch.setattr(packages, "_APT_HELPER", str(helper))
    with pytest.raises(PackageError) as caught:
        apt_download([("http://archive/x.deb", tmp_path / "x", "ab" * 32)])
    assert "404 Not Found" in caught.value.why
    assert f"http://archive/x.deb {tmp_path}/x SHA256:{'ab' * 32}" in (tmp_path / "called").read_text()


def test_a_machine_without_apt_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_APT_HELPER", "/nonexistent/apt-helper")
    reason = packages.unavailable()
    assert reason is not None
    assert reason.kind == "missing"


def make_deb(folder: Path) -> Path:
    (folder / "DEBIAN").mkdir(parents=True)
    (folder / "DEBIAN/control").write_text(
        "Package: tool\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: none\n"
    )
    (folder / "DEBIAN").chmod(0o755)  # whatever the umask; dpkg-deb insists on it
    (folder / "usr").mkdir()
    (folder / "usr/file").write_text("content")
    target = folder.with_suffix(".deb")
    subprocess.run(["dpkg-deb", "--build", "-z0", str(folder), str(target)], check=True, capture_output=True)
    return target


def test_a_package_is_unpacked_once(tmp_path: Path) -> None:
    deb = make_deb(tmp_path / "deb")
    target = unpack([deb], tmp_path / "root")
    assert (target / "usr/file").read_text() == "content"
    (target / "usr/file").write_text("changed")
    assert (unpack([deb], target) / "usr/file").read_text() == "changed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deb", "deb.deb", "root"]


def test_a_file_that_is_no_package_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "x.deb").write_bytes(b"no archive")
    with pytest.raises(PackageError):
        unpack([tmp_path / "x.deb"], tmp_path / "root")
    assert [path.name for path in tmp_path.iterdir()] == ["x.deb"]


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "wgvsock"
    assert (tmp_path / "wgvsock").is_dir()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_directory() == tmp_path / "home/.cache/wgvsock"


def test_other_pins_have_another_digest() -> None:
    other = Lock(LOCK.archives, {"host": (PIN, PIN)})
    assert LOCK.digest("host") != other.digest("host")
    assert re.fullmatch(r"[0-9a-f]{16}", LOCK.digest("host"))
