"""Drop reasons have one spelling, in the code and in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

from wgvsock.tunnel.tunnel import TunnelDrop
from wgvsock.virtio_net import HeaderFault
from wgvsock.wireguard import DropReason

OPERATIONS = Path(__file__).resolve().parents[2] / "docs/operations.md"

REASONS = [
    reason.value
    for reason in (*DropReason, *HeaderFault, *TunnelDrop)
    if reason is not DropReason.BAD_VIRTIO_HEADER  # is told by its fault
]


def test_reasons_are_one_word_each_and_are_different() -> None:
    assert [reason for reason in REASONS if not re.fullmatch("[a-z][a-z0-9_]*", reason)] == []
    assert len(set(REASONS)) == len(REASONS)


def test_the_documentation_lists_all_of_them() -> None:
    section = OPERATIONS.read_text(encoding="utf-8").split("## What was dropped")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert sorted(re.findall("`([^`]+)`", " ".join(cells))) == sorted(REASONS)
