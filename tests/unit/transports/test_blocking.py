"""Return all output until the end, and no more of it than is wanted."""

from __future__ import annotations

import socket
import time

import pytest

from wgvsock.transports.blocking import receive_to_end


def soon() -> float:
    return time.monotonic() + 60


@pytest.mark.parametrize(("said", "heard"), [(b"", b""), (b"x" * 10, b"x" * 10), (b"x" * 11, None)])
def test_up_to_the_end_or_to_the_limit(said: bytes, heard: bytes | None) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        assert receive_to_end(ours, limit=10, deadline=soon()) == heard


def test_a_deadline_that_is_over() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"x")
        with pytest.raises(TimeoutError):
            receive_to_end(ours, limit=10, deadline=time.monotonic())


def test_an_end_that_does_not_come() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"x")
        with pytest.raises(TimeoutError):
            receive_to_end(ours, limit=10, deadline=time.monotonic() + 0.01)
