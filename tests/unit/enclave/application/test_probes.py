"""Readiness probes, against real sockets and commands on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from pathlib import Path

import pytest

from wgvsock.enclave.application.probes import ask
from wgvsock.enclave.application.settings import ApplicationSettings


async def probe(ready: str, **settings: object) -> str | None:
    found = ApplicationSettings(ready=ready, **settings)  # type: ignore[arg-type]
    wanted = found.probe()
    assert wanted is not None
    return await ask(wanted, found)


async def served(answer: bytes | None, kind: str = "http", *, host: str = "127.0.0.1") -> tuple[str | None, bytes]:
    """Return what a probe finds of a server with this answer, and what the server got. None: it never answers."""
    loop, heard = asyncio.get_running_loop(), b""
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        server.setblocking(False)
        place = f"[{host}]" if ":" in host else host
        path = "/healthz" if kind == "http" else ""
        asking = asyncio.ensure_future(probe(f"{kind}:{place}:{server.getsockname()[1]}{path}", ready_timeout=0.2))
        connection, _ = await loop.sock_accept(server)
        with connection:
            if answer is not None:
                heard = await loop.sock_recv(connection, 4096) if kind == "http" else b""
                if answer:
                    await loop.sock_sendall(connection, answer)
                connection.close()
            return await asking, heard


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nfine", None),
        (b"HTTP/1.0 302 Found\r\n\r\n", None),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "it answers with HTTP status 503"),
        (b"SSH-2.0-x\r\n", "the answer is not HTTP"),
        (b"", "the answer is not HTTP"),
        (None, "the probe got no answer within 0.2 s"),
    ],
)
def test_http(answer: bytes | None, why: str | None) -> None:
    found, heard = asyncio.run(served(answer))
    assert found == why
    if answer is not None:
        assert heard.startswith(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:")


def test_http_on_ipv6() -> None:
    found, heard = asyncio.run(served(b"HTTP/1.1 204 No Content\r\n\r\n", host="::1"))
    assert found is None
    assert b"Host: [::1]:" in heard


def test_tcp() -> None:
    assert asyncio.run(served(b"", "tcp"))[0] is None


def test_nobody_listens() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert asyncio.run(probe(f"tcp:127.0.0.1:{sock.getsockname()[1]}")) == "Connection refused"


def test_commands(tmp_path: Path) -> None:
    assert asyncio.run(probe("exec:true")) is None
    assert asyncio.run(probe("exec:false")) == "false ended with status 1"
    assert asyncio.run(probe("exec:/no/such/program")) == "No such file or directory"
    (tmp_path / "marker").touch()
    assert asyncio.run(probe("exec:test -e marker", working_directory=str(tmp_path))) is None
    assert asyncio.run(probe("exec:true", user="nobody-here")) is not None


def test_a_command_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    script = tmp_path / "hang"
    script.write_text("#!/bin/sh\nsleep 600 &\necho $! > child\nwait\n")
    script.chmod(0o755)

    async def body() -> None:
        why = await probe(f"exec:{script}", ready_timeout=0.5, working_directory=str(tmp_path))
        assert why == "the probe got no answer within 0.5 s"

    asyncio.run(body())
    with contextlib.suppress(ProcessLookupError):  # it has ended, or does so when it gets a processor
        ended = os.pidfd_open(int((tmp_path / "child").read_text()))
        assert select.select([ended], [], [], 60)[0]
        os.close(ended)
