"""``wgvsock status [--json] [--watch] [--wait [--timeout S]]``: show the state of a running service.

Exit status: 0 ready, 3 not running, 4 running but not ready, 5 not ready because an enclave was refused, 6 not ready
within the time of ``--wait``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, Final

from wgvsock import settings
from wgvsock.cli.diagnosis import REFUSED_CODES
from wgvsock.cli.foreign import items, text
from wgvsock.cli.output import add_schema, note, print_error, print_json
from wgvsock.cli.screen import show, width
from wgvsock.cli.status_text import render
from wgvsock.errors import ConfigurationError, TransportError
from wgvsock.runtime.directory import RUNTIME_DIRECTORY, control_socket_path
from wgvsock.telemetry.client import request
from wgvsock.telemetry.schema import SCHEMA

EXIT_NOT_RUNNING: Final = 3
EXIT_DEGRADED: Final = 4
EXIT_REFUSED: Final = 5
EXIT_TIMEOUT: Final = 6

_POLL: Final = 0.2
_WATCH: Final = 1.0
"""Seconds between two updates."""

_MAX_CODE: Final = 20
"""Most characters of an error's code."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``status`` to the commands of ``wgvsock``."""
    parser = commands.add_parser("status", help="show the state of a running service", description=__doc__)
    parser.add_argument("--role", choices=("relay", "enclave"), default="relay", help="default: %(default)s")
    parser.add_argument("-c", "--config", metavar="FILE", help="the service's configuration, which names its socket")
    parser.add_argument("--name", help="the service's name, instead of its configuration's")
    parser.add_argument("--socket", metavar="PATH", help="the service's control socket")
    parser.add_argument("--json", action="store_true", help="print one JSON object (with --watch, one per line)")
    parser.add_argument("--watch", action="store_true", help="show it again every second until interrupted")
    parser.add_argument("--wait", action="store_true", help="wait until the service is ready")
    parser.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="S", help="for --wait (default: %(default)g s)"
    )
    add_schema(parser, "STATUS")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command, and return its exit status."""
    path = args.socket or socket_path(args.role, args.config, args.name)
    if args.wait:
        return _wait(path, args)
    while True:
        status = ask(path, "GET", "/status")
        _print(status, args)
        if not args.watch:
            return exit_status(status)
        time.sleep(_WATCH)


def ask(path: str, method: str, target: str) -> dict[str, Any]:
    """The object with which a service answers.

    Raises:
        NotRunningError: Nothing listens at the path.
        TransportError: The service cannot be reached, or another program listens at the path.
    """
    _, answer = request(path, method, target)
    if not isinstance(answer, dict) or answer.get("schema") != SCHEMA:
        raise TransportError(
            f"cannot query the service at {path}",
            why=f"it does not support {method} {target}",
            fix="check the path and the role",
        )
    return answer


def add_socket(parser: argparse.ArgumentParser, *, named: bool = False) -> None:
    """Add the options that select the relay to query. With `named`, its name can select it too."""
    parser.add_argument("-c", "--config", metavar="FILE", help="the relay's configuration, which names its socket")
    if named:
        parser.add_argument("--name", help="the relay's name, instead of its configuration's")
    parser.add_argument("--socket", metavar="PATH", help="the relay's control socket")


def socket_path(role: str, config: str | None, name: str | None = None) -> str:
    """Path of a service's control socket.

    It reads only two keys of a configuration, so that a running service can be found even if its file has errors by
    now.

    Args:
        role: ``relay`` or ``enclave``.
        config: The service's configuration. None: the role's default path, if that file exists.
        name: The service's name, instead of the configuration's.

    Raises:
        ConfigurationError: A configuration is named but cannot be read, or the name is invalid.
    """
    if name is not None:
        settings.check_service_name(name)
    directory, named = _glance(role, config)
    return control_socket_path(directory, name or named)


def _glance(role: str, config: str | None) -> tuple[str, str]:
    if role == "relay":
        from wgvsock.relay.config import DEFAULT_PATH
    else:
        from wgvsock.enclave.config import DEFAULT_PATH

    found: dict[str, Any] = {}
    try:
        if config is not None or Path(DEFAULT_PATH).exists():
            found = settings.glance(config or DEFAULT_PATH)
    except (settings.UnreadableConfigurationError, OSError) as error:
        if config is not None:
            raise
        note(f"the default configuration is ignored: {error}")
    directory, named = found.get("runtime_directory"), found.get("name")
    if not isinstance(directory, str) or "\0" in directory:
        directory = RUNTIME_DIRECTORY
    return directory, named if isinstance(named, str) and _is_service_name(named) else role


def _is_service_name(name: str) -> bool:
    try:
        settings.check_service_name(name)
    except ConfigurationError:
        return False
    return True


def exit_status(status: dict[str, Any]) -> int:
    """The exit status for a status snapshot."""
    if status.get("ready") is True:
        return 0
    tunnels = items(status, "enclaves") or [status]  # an enclave reports only its own
    codes = {text(tunnel, "provisioning", "error", "code", most=_MAX_CODE) for tunnel in tunnels}
    return EXIT_REFUSED if codes & REFUSED_CODES else EXIT_DEGRADED


def _seconds(text: str) -> float:
    seconds = float(text)
    if not seconds >= 0:  # also refuses NaN, which would wait forever
        raise argparse.ArgumentTypeError("not a number of seconds from 0 up")
    return seconds


def _wait(path: str, args: argparse.Namespace) -> int:
    deadline = time.monotonic() + args.timeout
    while True:
        failure, status = None, None
        try:
            status = ask(path, "GET", "/status")
        except TransportError as error:
            failure = error  # it may be starting
        if status is not None and status.get("ready") is True:
            _print(status, args)
            return 0
        if time.monotonic() >= deadline:
            if failure is not None:
                print_error(failure)
            elif status is not None:
                _print(status, args)
            return EXIT_TIMEOUT
        time.sleep(_POLL)


def _print(status: dict[str, Any], args: argparse.Namespace) -> None:
    if args.json:
        print_json(status)
    else:
        show(render(status, width(), time.time()), redraw=args.watch)
