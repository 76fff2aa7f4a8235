from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.image.cpio import CharacterDevice, Directory, Entry, File, Symlink, pack, unpack

TREE: dict[str, Entry] = {
    "init": File(b"#!/bin/sh\n", 0o755),
    "etc/hosts": File(b"127.0.0.1 localhost\n"),
    "bin": Symlink("usr/bin"),
    "tmp": Directory(0o1777),
    "dev/console": CharacterDevice(5, 1),
}

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1)
ENTRIES = st.one_of(
    st.builds(File, st.binary(), st.integers(0, 0o7777)),
    st.builds(Symlink, NAMES),
    st.builds(Directory, st.integers(0, 0o7777)),
    st.builds(CharacterDevice, st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF), st.integers(0, 0o7777)),
)


def test_header_of_the_first_entry_field_by_field() -> None:
    header = pack({"a": File(b"xyz", 0o640)})[:110]
    fields = [int(header[at : at + 8], 16) for at in range(6, 110, 8)]
    assert header[:6] == b"070701"
    assert fields == [1, 0o100640, 0, 0, 1, 0, 3, 0, 0, 0, 0, 2, 0]


def test_content_starts_on_a_multiple_of_four() -> None:
    for name in ("a", "ab", "abc", "abcd"):
        archive = pack({name: File(b"content")})
        assert archive.index(b"content") % 4 == 0
        assert len(archive) % 4 == 0


def test_parents_come_first_and_are_made_once() -> None:
    names = list(unpack(pack({"a/b/c": File(b""), "a/b/d": File(b"")})))
    assert names == ["a", "a/b", "a/b/c", "a/b/d"]


def test_the_same_tree_gives_the_same_bytes_in_any_order() -> None:
    assert pack(dict(reversed(TREE.items()))) == pack(TREE)


@given(st.dictionaries(NAMES.filter(lambda name: name != "TRAILER!!!"), ENTRIES, max_size=6))
def test_unpack_is_the_inverse_of_pack(tree: dict[str, Entry]) -> None:
    assert unpack(pack(tree)) == tree


@pytest.mark.parametrize("cut", [0, 50, 113, 120])
def test_a_cut_archive_is_refused(cut: int) -> None:
    with pytest.raises(ValueError, match=r"header|truncated"):
        unpack(pack({"a": File(b"some content")})[:cut])


@pytest.mark.skipif(shutil.which("cpio") is None, reason="missing: cpio, the second implementation")
def test_the_cpio_command_reads_the_same(tmp_path: Path) -> None:
    without_devices = {name: entry for name, entry in TREE.items() if not isinstance(entry, CharacterDevice)}
    subprocess.run(["cpio", "-idm", "--quiet"], cwd=tmp_path, input=pack(without_devices), check=True)
    assert (tmp_path / "etc/hosts").read_bytes() == b"127.0.0.1 localhost\n"
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    assert str((tmp_path / "bin").readlink()) == "usr/bin"
    assert (tmp_path / "tmp").stat().st_mode & 0o7777 == 0o1777
