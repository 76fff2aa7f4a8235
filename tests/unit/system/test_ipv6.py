"""The switches of IPv6 forwarding: which are off, and which cannot be set from here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wgvsock.system import ipv6


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    for name, value in {"all/forwarding": "0", "eth0/accept_ra": "1", "eth1/accept_ra": "0"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "present", "value"),
    [
        ("forwarding", "0", "1"),
        ("forwarding", "1", None),
        ("accept_ra", "1", "2"),
        ("accept_ra", "2", None),
        ("accept_ra", "0", None),  # no default route comes by router advertisements
    ],
)
def test_what_is_written(name: str, present: str, value: str | None) -> None:
    assert ipv6.wanted(Path(name), present) == value


def test_what_is_off(conf: Path) -> None:
    accept_ra, forwarding = conf / "eth0/accept_ra", conf / "all/forwarding"
    assert ipv6.switches("eth0", conf) == (accept_ra, forwarding)
    assert ipv6.off(["eth0", "eth1", "gone"], conf) == [accept_ra, forwarding]
    assert ipv6.off([], conf) == [forwarding]
    forwarding.write_text("1\n")
    assert ipv6.off(["eth1"], conf) == []
    assert ipv6.off(["eth0"], conf / "none") == []


def test_what_has_to_be_set_from_outside(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ipv6.barred(["eth0"], conf) == ()
    monkeypatch.setattr("wgvsock.system.ipv6.os.access", lambda _path, mode: mode != os.W_OK)
    assert ipv6.barred(["eth0"], conf) == ("net.ipv6.conf.eth0.accept_ra", "net.ipv6.conf.all.forwarding")
    (conf / "all/forwarding").write_text("1\n")
    assert ipv6.barred(["eth1"], conf) == ()


def test_whether_an_interface_can_have_addresses(conf: Path) -> None:
    assert not ipv6.is_there("eth0", conf)  # a kernel without IPv6
    switch = conf / "eth0/disable_ipv6"
    for value, there in {"0": True, "1": False}.items():
        switch.write_text(f"{value}\n")
        assert ipv6.is_there("eth0", conf) is there


def test_what_is_right_is_not_written(conf: Path) -> None:
    switch = conf / "all/forwarding"
    ipv6.write(switch, "1")
    assert switch.read_text()[0] == "1"
    switch.chmod(0o444)
    ipv6.write(switch, "1")
