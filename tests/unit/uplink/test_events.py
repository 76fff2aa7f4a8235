"""Poll events in libslirp's terms and in epoll's."""

from __future__ import annotations

import select

import pytest

from wgvsock.uplink.events import EPOLL, SLIRP
from wgvsock.uplink.libslirp import POLL_ERR, POLL_HUP, POLL_IN, POLL_OUT, POLL_PRI


@pytest.mark.parametrize(
    ("slirp", "epoll"),
    [
        (0, 0),
        (POLL_IN, select.EPOLLIN),
        (POLL_OUT | POLL_PRI, select.EPOLLOUT | select.EPOLLPRI),
        (POLL_IN | POLL_ERR | POLL_HUP, select.EPOLLIN),  # errors are always reported
    ],
)
def test_what_is_waited_for(slirp: int, epoll: int) -> None:
    assert EPOLL[slirp] == epoll


@pytest.mark.parametrize(
    ("epoll", "slirp"),
    [
        (0, 0),
        (select.EPOLLIN | select.EPOLLOUT, POLL_IN | POLL_OUT),
        (select.EPOLLPRI, POLL_PRI),
        (select.EPOLLERR | select.EPOLLHUP, POLL_ERR | POLL_HUP),
    ],
)
def test_what_has_happened(epoll: int, slirp: int) -> None:
    assert SLIRP[epoll] == slirp
