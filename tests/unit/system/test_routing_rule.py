"""A rule of each IP version drops unmarked packets. Both are the same wherever they are made and removed."""

from __future__ import annotations

import asyncio
import errno
import struct
from typing import Self

import pytest

from wgvsock.runtime.journal import Undo
from wgvsock.system import routing_rule
from wgvsock.system.errors import NetlinkSetupError
from wgvsock.system.rawnetlink import attributes
from wgvsock.system.routing_rule import performers, require_mark


class Kernel:
    """Replaces `RawNetlink`: has rules, by family."""

    def __init__(self) -> None:
        self.rules: dict[int, bytes] = {}
        self.refuses: dict[int, int] = {}

    def __call__(self, _family: int) -> Kernel:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def change(self, kind: int, body: bytes, flags: int) -> None:
        family = body[0]
        if number := self.refuses.get(family):
            raise OSError(number, "the test says so")
        if kind == 32:
            assert flags == 0x200 | 0x400  # NLM_F_EXCL, NLM_F_CREATE: else a second one of the same kind is made
            if family in self.rules:
                raise FileExistsError(errno.EEXIST, "File exists")
            self.rules[family] = body
        else:
            assert kind == 33
            if self.rules.get(family) != body:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory")
            del self.rules[family]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(routing_rule, "RawNetlink", made)
    return made


def forget(undo: Undo) -> Undo:
    return undo


def remove() -> None:
    async def undo() -> None:
        await performers()["routing_rule"]("wg0", "")

    asyncio.run(undo())


def test_what_has_no_mark_is_dropped(kernel: Kernel) -> None:
    undone: list[Undo] = []

    def record(undo: Undo) -> Undo:
        assert not kernel.rules  # what is not written down is not changed
        undone.append(undo)
        return undo

    assert require_mark("wg0", (4, 6), record)
    assert undone == [Undo("routing_rule", "wg0", "")]
    assert sorted(kernel.rules) == [2, 10]
    body = kernel.rules[2]
    assert struct.unpack_from("=BBBBBBBBI", body) == (2, 0, 0, 0, 0, 0, 0, 6, 0)  # RTN_BLACKHOLE
    assert dict(attributes(body[12:])) == {
        3: b"wg0\0",
        6: struct.pack("=I", 1),
        10: bytes(4),
        16: struct.pack("=I", 0x2000),
        21: b"\x77",
    }


def test_a_rule_that_is_there_is_no_change(kernel: Kernel) -> None:
    require_mark("wg0", (4, 6), forget)
    assert not require_mark("wg0", (4, 6), forget)
    del kernel.rules[10]
    assert require_mark("wg0", (4, 6), forget)
    assert sorted(kernel.rules) == [2, 10]


def test_both_are_taken_back_whether_they_are_there_or_not(kernel: Kernel) -> None:
    require_mark("wg0", (4,), forget)
    remove()
    remove()
    assert not kernel.rules


def test_a_kernel_without_ipv6_has_nothing_to_take_back(kernel: Kernel) -> None:
    kernel.refuses = {10: errno.EAFNOSUPPORT}
    require_mark("wg0", (4,), forget)
    remove()
    assert not kernel.rules


def test_a_kernel_without_policy_routing_says_so(kernel: Kernel) -> None:
    kernel.refuses = {2: errno.EOPNOTSUPP}
    with pytest.raises(NetlinkSetupError) as caught:
        require_mark("wg0", (4,), forget)
    assert caught.value.what == "cannot change the routing policy of wg0"
    assert "CONFIG_IP_MULTIPLE_TABLES" in caught.value.fix
