"""``[application]`` of ``enclave.toml``: how the application runs, and what it reports to the relay."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from wgvsock.errors import ConfigurationError
from wgvsock.settings import Between
from wgvsock.telemetry.reports import REPORT_PORT

SignalName = Literal["HUP", "INT", "QUIT", "USR1", "USR2", "TERM", "WINCH"]

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=[^\0]*", re.DOTALL)
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?")


@dataclass(frozen=True, slots=True)
class Probe:
    """A readiness probe.

    Attributes:
        kind: How the application is probed.
        host: For ``tcp`` and ``http``.
        port: For ``tcp`` and ``http``.
        path: For ``http``, including the query.
        command: For ``exec``: program and arguments.
    """

    kind: Literal["tcp", "http", "exec"]
    host: str = ""
    port: int = 0
    path: str = ""
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ApplicationSettings:
    """The table.

    Attributes:
        forward_output: Send what the application writes to its standard streams to the relay. Otherwise it goes where
            the agent's output goes: to the console, which an enclave in production does not have.
        output_limit: Bytes of output to keep for a relay that is away or slow.
        report_port: TCP port of the reports on the tunnel's addresses, or 0 for none.
        restart: When to restart the application after it has ended, instead of ending the enclave with it.
        ready: ``tcp:HOST:PORT``, ``http:HOST:PORT/PATH`` or ``exec:PROGRAM ARGUMENTS``.
        ready_interval: Seconds between two probes.
        ready_timeout: Seconds that a probe may take.
        user: Name or number of the user that it runs as, with ``:GROUP`` if that is not the user's own.
        env: Variables, ``NAME=value``, that add to the agent's own or replace them.
        working_directory: Directory to start it in.
        signals: Signals that the relay's operator may send it.
    """

    forward_output: bool = False
    output_limit: Annotated[int, Between(4096, 16 << 20)] = 131_072
    report_port: Annotated[int, Between(0, 65535)] = REPORT_PORT
    restart: Literal["never", "on-failure", "always"] = "never"
    ready: str | None = None
    ready_interval: Annotated[float, Between(0.1, 3600)] = 1.0
    ready_timeout: Annotated[float, Between(0.1, 60)] = 2.0
    user: str | None = None
    env: tuple[str, ...] = ()
    working_directory: str | None = None
    signals: tuple[SignalName, ...] = ()

    def __post_init__(self) -> None:
        self.probe()
        if self.user is not None and not _USER.fullmatch(self.user):
            raise ConfigurationError(
                'cannot use "user"', why="it is not a user", fix='write "app", "1000" or "1000:1000"'
            )
        for variable in self.env:
            if not _VARIABLE.fullmatch(variable):
                raise ConfigurationError(
                    'cannot use "env"', why="an entry does not set a variable", fix='write ["NAME=value"]'
                )

    def probe(self) -> Probe | None:
        """The readiness probe, or None if there is none.

        Raises:
            ConfigurationError: `ready` is malformed.
        """
        if self.ready is None:
            return None
        kind, _, rest = self.ready.partition(":")
        if kind == "exec" and rest.split():
            return Probe("exec", command=tuple(rest.split()))
        if kind in {"tcp", "http"}:
            try:
                target = urlsplit(f"//{rest}")
                if target.hostname and target.port and target.username is None and _is_address(target.hostname):
                    path = target._replace(scheme="", netloc="", fragment="").geturl() or "/"
                    if kind == "http" and path.isascii() and path.isprintable() and " " not in path:
                        return Probe("http", target.hostname, target.port, path)
                    if kind == "tcp" and rest == target.netloc:
                        return Probe("tcp", target.hostname, target.port)
            except ValueError:
                pass
        raise ConfigurationError(
            'cannot use "ready"',
            why="it is not a readiness probe",
            fix='write "tcp:127.0.0.1:8080", "http:127.0.0.1:8080/healthz" or "exec:/bin/check"',
        )


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
