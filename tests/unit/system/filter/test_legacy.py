"""The sizes of the kernel's older packet filter are read only for tables that exist."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from wgvsock.system.filter.legacy import sizes


class Libc:
    """Replaces the C library: tables and their rules."""

    def __init__(self, rules: dict[tuple[int, bytes], int]) -> None:
        self.rules = rules

    def __call__(self, _name: None, *, use_errno: bool) -> Libc:
        assert use_errno  # else nobody knows what was wrong
        return self

    def getsockopt(self, _number: int, level: int, option: int, buffer: Any, length: Any) -> int:
        assert option == 64
        assert length._obj.value == len(buffer) == 84  # the kernel takes no other
        key = level, buffer.raw.rstrip(b"\0")
        if key not in self.rules:
            ctypes.set_errno(1)
            return -1
        buffer[76] = self.rules[key]
        return 0


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "ip_tables_names").write_text("nat\nfilter\n")
    (tmp_path / "ip6_tables_names").write_text("filter\n")
    return tmp_path


def test_one_rule_more_is_seen(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Libc({(0, b"nat"): 5, (0, b"filter"): 3, (41, b"filter"): 4})
    monkeypatch.setattr(ctypes, "CDLL", kernel)
    before = sizes(proc)
    assert [(family, name) for family, name, _ in before] == [(2, "nat"), (2, "filter"), (10, "filter")]
    assert sizes(proc) == before
    kernel.rules[41, b"filter"] += 1
    assert sizes(proc) != before


def test_what_may_not_be_asked_is_not_seen(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", Libc({(41, b"filter"): 4}))
    assert [(family, name) for family, name, _ in sizes(proc)] == [(10, "filter")]


def test_a_kernel_without_it_has_no_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: pytest.fail("nothing is to be asked"))
    assert sizes(tmp_path) == ()
