from __future__ import annotations

from pathlib import Path

import pytest

from lab.image import cpio, modules
from lab.image import nested as nested_image
from lab.image.build import Image
from lab.image.cpio import Entry, File
from lab.image.errors import ImageError
from lab.image.modules import Module
from lab.image.packages import read_lock

LOADER = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
LIBRARY = "usr/lib/x86_64-linux-gnu/libglib-2.0.so.0"
LISTED = """#!/bin/sh
test "$1" = --list || exit 1
echo "	linux-vdso.so.1 (0x00007ffd)"
echo "	libglib-2.0.so.0 => {root}/{library} (0x00007f1a)"
echo "	/lib64/ld-linux-x86-64.so.2 => {root}/{loader} (0x00007f1b)"
"""


def file(tree: dict[str, Entry], name: str) -> File:
    entry = tree[name]
    assert isinstance(entry, File)
    return entry


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A tree of host packages whose loader lists one library."""
    root = tmp_path / "host"
    for name in (
        LIBRARY,
        "usr/lib/x86_64-linux-gnu/libother.so.1",
        *nested_image._FIRMWARE,
        nested_image._QEMU,
        LOADER,
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (root / nested_image._QEMU).chmod(0o755)
    (root / LOADER).write_text(LISTED.format(root=root, library=LIBRARY, loader=LOADER))
    (root / LOADER).chmod(0o755)
    return root


def test_qemu_comes_with_what_it_needs_and_no_more(host: Path) -> None:
    tree = nested_image._qemu(host)
    names = {LIBRARY, LOADER, nested_image._QEMU, *nested_image._FIRMWARE}
    assert set(tree) == {f"opt/qemu/{name}" for name in names}
    assert file(tree, f"opt/qemu/{nested_image._QEMU}").mode == 0o755
    assert file(tree, f"opt/qemu/{LIBRARY}") == File(LIBRARY.encode(), 0o644)


def test_a_loader_that_fails_is_reported(host: Path) -> None:
    (host / LOADER).write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    with pytest.raises(ImageError, match="which libraries"):
        nested_image._qemu(host)


def test_modules_are_numbered_in_the_order_of_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def module(name: str, *needs: str) -> Module:
        return Module(name, f"kernel/{name}.ko", b"\0depends=" + ",".join(needs).encode() + b"\0")

    found = {m.name: m for m in (module("kvm", "irqbypass"), module("kvm_amd", "kvm"), module("irqbypass"))}
    (tmp_path / "lib/modules/6.12").mkdir(parents=True)
    monkeypatch.setattr(nested_image, "unpack_group", lambda *_: tmp_path)
    monkeypatch.setattr(modules, "collect", lambda *_: found)
    names = [name.rpartition("/")[2] for name in sorted(nested_image._modules(read_lock(), tmp_path))]
    assert names == ["00-irqbypass.ko", "01-kvm.ko", "02-kvm_amd.ko"]


def test_the_outer_guest_holds_the_very_files_that_the_inner_one_boots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("vmlinux", "base.cpio", "application.cpio"):
        (tmp_path / name).write_text(name)
    inner = Image(tmp_path / "vmlinux", (tmp_path / "base.cpio", tmp_path / "application.cpio"))
    monkeypatch.setattr(nested_image, "_qemu", lambda _host: {})
    monkeypatch.setattr(nested_image, "_modules", lambda _lock, _cache: {})
    monkeypatch.setattr(nested_image, "unpack_group", lambda *_: tmp_path)
    outer = nested_image.outer(inner, tmp_path, tmp_path)
    assert (outer.kernel, outer.ramdisks[:2]) == (inner.kernel, inner.ramdisks)
    tree: dict[str, Entry] = {}
    for part in outer.ramdisks[2:]:
        tree |= cpio.unpack(part.read_bytes())
    assert file(tree, "nested/vmlinux").data == b"vmlinux"
    assert file(tree, "nested/ramdisks/0").data + file(tree, "nested/ramdisks/1").data == b"base.cpioapplication.cpio"


def test_what_depends_on_pins_alone_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def qemu(host: Path) -> dict[str, Entry]:
        made.append(host)
        return {}

    monkeypatch.setattr(nested_image, "_qemu", qemu)
    monkeypatch.setattr(nested_image, "_modules", lambda _lock, _cache: {})
    monkeypatch.setattr(nested_image, "unpack_group", lambda *_: tmp_path)
    for name in ("vmlinux", "base.cpio"):
        (tmp_path / name).write_text(name)
    paths = {nested_image.pinned_part(tmp_path / "vmlinux", tmp_path / "base.cpio", tmp_path) for _ in range(2)}
    assert len(paths) == len(made) == 1
