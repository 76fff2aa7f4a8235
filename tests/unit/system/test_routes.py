"""Against this machine's own loopback, which every network namespace has. Routes are only read."""

from __future__ import annotations

import errno
import select
import socket

import pytest

from wgvsock.system import routes
from wgvsock.system.routes import RouteWatch, watch_routes

LOOPBACK = socket.if_nametoindex("lo")


@pytest.fixture
def watch() -> RouteWatch:
    found = watch_routes()
    assert found is not None
    return found


@pytest.mark.parametrize("mark", [0, 5])
def test_the_way_to_ourselves(watch: RouteWatch, mark: int) -> None:
    assert watch.interface_to("127.0.0.2", socket.inet_aton("127.0.0.1"), mark) == LOOPBACK
    watch.close()


def test_an_address_that_is_not_ours_has_no_way(watch: RouteWatch) -> None:
    assert watch.interface_to("127.0.0.2", socket.inet_aton("198.51.100.77"), 0) is None
    watch.close()


def test_an_answer_without_an_interface_is_none(watch: RouteWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch._asking, "ask", lambda *_: bytes(12))
    assert watch.interface_to("127.0.0.2", socket.inet_aton("127.0.0.1"), 0) is None
    watch.close()


def test_while_nothing_changes_nothing_is_said(watch: RouteWatch) -> None:
    watch.drain()
    assert select.select([watch], [], [], 0)[0] == []
    watch.close()
    watch.close()


def test_draining_goes_on_after_an_overflow(watch: RouteWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([OSError(errno.ENOBUFS, "No buffer space available"), None, BlockingIOError()])

    class Listening:
        def recv(self, _: int) -> bytes:
            if (answer := next(answers)) is not None:
                raise answer
            return b"news"

        def close(self) -> None:
            pass

    watch._listening.close()
    monkeypatch.setattr(watch, "_listening", Listening())
    watch.drain()
    assert list(answers) == []
    watch.close()


def test_a_machine_without_netlink(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(routes, "RawNetlink", refuse)
    assert watch_routes() is None
