"""Translates between libslirp's poll events and epoll's, by tables because it runs for each connection in each turn."""

from __future__ import annotations

import select
from typing import Final

from wgvsock.uplink.libslirp import POLL_ERR, POLL_HUP, POLL_IN, POLL_OUT, POLL_PRI

_TO_EPOLL: Final = {POLL_IN: select.EPOLLIN, POLL_OUT: select.EPOLLOUT, POLL_PRI: select.EPOLLPRI}
_FROM_EPOLL: Final = {
    select.EPOLLIN: POLL_IN,
    select.EPOLLOUT: POLL_OUT,
    select.EPOLLPRI: POLL_PRI,
    select.EPOLLERR: POLL_ERR,
    select.EPOLLHUP: POLL_HUP,
}
EPOLL: Final = [sum(value for bit, value in _TO_EPOLL.items() if events & bit) for events in range(32)]
"""epoll's events by libslirp's. epoll always reports errors."""
SLIRP: Final = [sum(value for bit, value in _FROM_EPOLL.items() if events & bit) for events in range(32)]
"""libslirp's events by the lower five bits of epoll's."""
