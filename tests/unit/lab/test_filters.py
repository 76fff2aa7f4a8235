"""A machine on which only one way to change the packet filter works."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lab import filters
from lab.errors import LabError
from lab.filters import PacketFilter


def test_nft_needs_no_preparation() -> None:
    assert PacketFilter.NFT.wrap(["relay", "run"], "/there") == ["relay", "run"]


@pytest.mark.parametrize(
    ("chosen", "program"), [(PacketFilter.IPTABLES, "xtables-nft-multi"), (PacketFilter.LEGACY, "xtables-legacy-multi")]
)
def test_nft_fails_and_iptables_is_the_one_asked_for(chosen: PacketFilter, program: str, tmp_path: Path) -> None:
    (tmp_path / program).write_text('#!/bin/sh\necho "$0 $*"\n')
    (tmp_path / program).chmod(0o755)
    folder = tmp_path / "filter"
    script = f"ip6tables-save -t nat; readlink {folder}/iptables-restore; nft list tables"
    for _ in range(2):  # each start of the Relay makes the folder anew
        done = subprocess.run(
            chosen.wrap(["sh", "-c", script], str(folder)),
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stdout.splitlines() == [f"{folder}/ip6tables-save -t nat", str(tmp_path / program)]
        assert "Operation not supported" in done.stderr


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FILTER", raising=False)
    assert filters.asked_for() is PacketFilter.NFT
    monkeypatch.setenv("FILTER", "iptables-legacy")
    assert filters.asked_for() is PacketFilter.LEGACY
    monkeypatch.setenv("FILTER", "pf")
    with pytest.raises(LabError, match=r"no packet filter 'pf'.*") as refused:
        filters.asked_for()
    assert refused.value.fix == "choose one of nft, iptables, iptables-legacy"


def test_each_lists_its_own_rules() -> None:
    assert PacketFilter.NFT.listing == "nft list ruleset"
    assert "-legacy-save" in PacketFilter.LEGACY.listing
    assert "-nft-save" in PacketFilter.IPTABLES.listing
    assert PacketFilter.NFT.trial[0] == "nft"
    assert "ip6tables" in PacketFilter.IPTABLES.trial[-1]
