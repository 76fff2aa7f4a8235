from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from lab.image.cpio import File
from lab.image.errors import ImageError
from lab.image.modules import closure, collect, entries


def add(folder: Path, path: str, *, depends: str = "", aliases: tuple[str, ...] = ()) -> None:
    strings = ["license=GPL", *(f"alias={alias}" for alias in aliases), f"depends={depends}", "name=x"]
    data = b"\x7fELF\0" + b"\0".join(text.encode() for text in strings) + b"\0rest"
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(lzma.compress(data))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    add(tmp_path, "kernel/net/vsock.ko.xz", aliases=("net-pf-40",))
    add(tmp_path, "kernel/net/common.ko.xz", depends="vsock")
    add(tmp_path, "kernel/net/virtio-transport.ko.xz", depends="vsock,common", aliases=("virtio:d00000013v*",))
    add(tmp_path, "kernel/net/nft_nat.ko.xz")
    add(tmp_path, "kernel/net/nft_ct.ko.xz")
    add(tmp_path, "kernel/net/broken.ko.xz", depends="nowhere")
    return tmp_path


def test_needs_of_needs_come_along_and_dashes_are_underscores(folder: Path) -> None:
    found = collect(folder, ["virtio_transport"])
    assert list(found) == ["common", "virtio_transport", "vsock"]
    assert found["virtio_transport"].depends == ("vsock", "common")
    assert found["virtio_transport"].aliases == ("virtio:d00000013v*",)
    assert found["vsock"].path == "kernel/net/vsock.ko"


def test_a_star_takes_every_name_with_that_beginning(folder: Path) -> None:
    assert list(collect(folder, ["nft_*"])) == ["nft_ct", "nft_nat"]


@pytest.mark.parametrize("wanted", ["missing", "broken"])
def test_a_module_that_is_not_there_is_an_error(folder: Path, wanted: str) -> None:
    with pytest.raises(ImageError):
        collect(folder, [wanted])


def test_needs_are_listed_so_that_the_last_is_loaded_first(folder: Path) -> None:
    found = collect(folder, ["virtio_transport"])
    assert closure(found["virtio_transport"], found) == ["kernel/net/common.ko", "kernel/net/vsock.ko"]


def test_tables_are_what_modprobe_reads(folder: Path) -> None:
    tree = entries(collect(folder, ["virtio_transport"]), "6.12")
    root = "usr/lib/modules/6.12"
    dep, alias = tree[f"{root}/modules.dep"], tree[f"{root}/modules.alias"]
    assert isinstance(dep, File)
    assert isinstance(alias, File)
    assert dep.data.decode().splitlines() == [
        "kernel/net/common.ko: kernel/net/vsock.ko",
        "kernel/net/virtio-transport.ko: kernel/net/common.ko kernel/net/vsock.ko",
        "kernel/net/vsock.ko:",
    ]
    assert "alias net-pf-40 vsock" in alias.data.decode().splitlines()
    data = tree[f"{root}/kernel/net/vsock.ko"]
    assert isinstance(data, File)
    assert data.data.startswith(b"\x7fELF")
