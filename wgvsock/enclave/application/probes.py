"""Probes once whether the application is ready, with a TCP connection, an HTTP request or a command."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Final

from wgvsock.addresses import Port, TcpAddress
from wgvsock.enclave.application.process import die_with_parent, identity
from wgvsock.enclave.application.settings import ApplicationSettings, Probe
from wgvsock.errors import TransportError
from wgvsock.transports.sockets import connect_stream, send_all

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")
_ENOUGH: Final = 16
"""Bytes of an answer to read: its status line up to and including the status."""


Ask = Callable[[Probe, ApplicationSettings], Coroutine[Any, Any, str | None]]
"""See `ask`."""


async def ask(probe: Probe, settings: ApplicationSettings) -> str | None:
    """Run a probe. Returns why the application is not ready, or None if it is."""
    try:
        async with asyncio.timeout(settings.ready_timeout):
            if probe.kind == "exec":
                return await _execute(probe, settings)
            return await _connect(probe)
    except TimeoutError:
        return f"the probe got no answer within {settings.ready_timeout:g} s"
    except TransportError as error:
        return error.why
    except (OSError, KeyError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)


async def _connect(probe: Probe) -> str | None:
    loop = asyncio.get_running_loop()
    sock = await connect_stream(TcpAddress(probe.host, Port(probe.port)), deadline=float("inf"))
    with sock:
        if probe.kind == "tcp":
            return None
        host = f"[{probe.host}]" if ":" in probe.host else probe.host
        request = f"GET {probe.path} HTTP/1.1\r\nHost: {host}:{probe.port}\r\nConnection: close\r\n\r\n"
        await send_all(sock, request.encode("ascii"))
        head = b""
        while len(head) < _ENOUGH and (data := await loop.sock_recv(sock, _ENOUGH - len(head))):
            head += data
    status = _STATUS_LINE.match(head)
    if status is None:
        return "the answer is not HTTP"
    return None if 200 <= int(status[1]) < 400 else f"it answers with HTTP status {int(status[1])}"


async def _execute(probe: Probe, settings: ApplicationSettings) -> str | None:
    process = await asyncio.create_subprocess_exec(
        *probe.command,
        process_group=0,
        preexec_fn=die_with_parent(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=settings.working_directory,
        **identity(settings.user),
    )
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise
    return None if code == 0 else f"{probe.command[0]} ended with status {code}"
