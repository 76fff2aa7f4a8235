"""The catalogue matches the pages, and contains all names in the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from wgvsock.attestation import errors
from wgvsock.cli.catalogue import DROPS, ERRORS, FOLDERS, PAGES, Entry, entries, normalised
from wgvsock.errors import SystemSetupError
from wgvsock.wireguard import DropReason


def by_name() -> dict[str, Entry]:
    return {entry.name: entry for entry in entries()}


def test_an_error_with_its_remedy_and_status() -> None:
    entry = by_name()["WGV-E071"]
    assert entry.exit_status == 7
    assert entry.remedy == "run as root, or give the container NET_ADMIN"
    assert entry.page == ERRORS


def test_every_check_of_a_document() -> None:
    checks = {
        kind.check
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.RejectedDocumentError)
    } - {"attestation"}
    there = by_name()
    assert not {check for check in checks if check not in there}
    assert there["pcr.set"].meaning == "the PCRs match no allowed set completely"
    assert there["pcr.set"].remedy == errors.PcrSetError.hint
    assert all(entry.remedy for entry in there.values() if entry.kind == "check")


def test_every_reason_for_a_drop() -> None:
    there = by_name()
    entry = there[DropReason.INVALID_MAC1.value]
    assert (entry.kind, entry.exit_status, entry.page) == ("drop reason", None, DROPS)
    assert there["virtio_csum"].kind == "drop reason"
    # A link is its words: a terminal cannot follow it.
    assert there["egress_denied"].meaning.startswith("a packet that the enclave's own policy denies")


def test_names_are_different() -> None:
    names = [entry.name for entry in entries()]
    assert len(names) == len(set(names))
    assert len(names) > 130


@pytest.mark.parametrize("name", ["WGV-E031", "wgv-e031", "e31", "E031", "31", " 031 "])
def test_a_code_in_short(name: str) -> None:
    assert normalised(name) == "WGV-E031"


@pytest.mark.parametrize("name", ["pcr.set", "PCR.set", "e1234", "٣", "wgv"])
def test_another_name(name: str) -> None:
    assert normalised(name) == name.lower()


def test_the_package_s_own_pages_come_first(tmp_path: Path) -> None:
    for name in PAGES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("| WGV-E001 | 2 | of the package | read it |\n" if name == ERRORS else "")
    assert entries((tmp_path, *FOLDERS)) == [Entry("WGV-E001", "error", "of the package", "read it", 2)]


def test_a_package_without_pages(tmp_path: Path) -> None:
    with pytest.raises(SystemSetupError, match=r"errors\.md"):
        entries((tmp_path,))
