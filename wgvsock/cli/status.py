"""``wgvsock status [--json] [--watch] [--wait [--timeout S]]``: what a running service does.

Exit status: 0 ready, 3 not running, 4 running and not ready, 5 not ready because the enclave was refused, 6 not ready
within the time that ``--wait`` has.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, Final

from wgvsock.cli.output import SCHEMA, print_error, print_json, put
from wgvsock.errors import TransportError
from wgvsock.telemetry.endpoint import request

EXIT_NOT_RUNNING: Final = 3
EXIT_DEGRADED: Final = 4
EXIT_REFUSED: Final = 5
EXIT_TIMEOUT: Final = 6

_POLL: Final = 0.2
_WATCH: Final = 1.0
"""Seconds between two looks."""

_REFUSED_CODES: Final = range(30, 40)
"""WGV-E030 to E039: attestation."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``status`` to the commands of ``wgvsock``."""
    parser = commands.add_parser("status", help="show what a running service does", description=__doc__)
    parser.add_argument("--role", choices=("relay", "enclave"), default="relay", help="default: %(default)s")
    parser.add_argument("-c", "--config", metavar="FILE", help="the service's configuration, which names its socket")
    parser.add_argument("--socket", metavar="PATH", help="the service's control socket itself")
    parser.add_argument("--json", action="store_true", help="print one JSON object (with --watch, one a line)")
    parser.add_argument("--watch", action="store_true", help="print again every second until interrupted")
    parser.add_argument("--wait", action="store_true", help="wait until the service is ready")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="for --wait (default: %(default)g s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry the command out."""
    path = args.socket or socket_path(args.role, args.config)
    if args.wait:
        return _wait(path, args)
    while True:
        status = ask(path, "GET", "/status")
        _print(status, args)
        if not args.watch:
            return exit_status(status)
        time.sleep(_WATCH)


def ask(path: str, method: str, target: str) -> dict[str, Any]:
    """The object that a service answers.

    Raises:
        NotRunningError: Nobody listens at the path.
        TransportError: The service cannot be reached, or what listens there is none of ours.
    """
    _, answer = request(path, method, target)
    if not isinstance(answer, dict) or answer.get("schema") != SCHEMA:
        raise TransportError(
            f"cannot ask the service at {path}",
            why=f"it does not know {method} {target}",
            fix="check the path and the role",
        )
    return answer


def socket_path(role: str, config: str | None) -> str:
    """Where the control socket of a service is.

    Raises:
        ConfigurationError: A configuration is named and cannot be read.
    """
    directory, name = "/run/wgvsock", role
    settings: Any = None
    if role == "relay":
        from wgvsock.relay import config as relay

        if config is not None or Path(relay.DEFAULT_PATH).exists():
            settings = relay.load(config or relay.DEFAULT_PATH)
    else:
        from wgvsock.enclave import config as enclave

        if config is not None or Path(enclave.DEFAULT_PATH).exists():
            settings = enclave.load(config or enclave.DEFAULT_PATH)
    if settings is not None:
        directory, name = settings.runtime_directory, settings.name
    return str(Path(directory) / f"{name}.sock")


def exit_status(status: dict[str, Any]) -> int:
    """The exit status that a snapshot comes to."""
    if status["ready"]:
        return 0
    error = status["provisioning"].get("error")
    refused = error is not None and int(error["code"].removeprefix("WGV-E")) in _REFUSED_CODES
    return EXIT_REFUSED if refused else EXIT_DEGRADED


def _wait(path: str, args: argparse.Namespace) -> int:
    deadline = time.monotonic() + args.timeout
    while True:
        failure, status = None, None
        try:
            status = ask(path, "GET", "/status")
        except TransportError as error:
            failure = error  # it may be starting
        if status is not None and status["ready"]:
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
        put("\n".join(render(status)))


def render(status: dict[str, Any]) -> list[str]:
    """The snapshot for people."""
    lines = [f"{status['role']} {status['name']}: {status['state']}, {'ready' if status['ready'] else 'not ready'}"]
    if conditions := status.get("conditions"):
        lines.append("conditions: " + ", ".join(f"{name} {'yes' if ok else 'no'}" for name, ok in conditions.items()))
    if attestation := status.get("attestation"):
        lines.append(f"enclave: {attestation['module_id']}, attested {attestation['timestamp']}")
        lines.append(f"PCR0: {attestation['pcrs']['PCR0']}")
    if status.get("root_is_aws") is False:
        lines.append("warning: an attestation root other than AWS's is accepted")
    if status.get("debug_allowed"):
        lines.append("warning: enclaves in debug mode are accepted")
    if error := status["provisioning"].get("error"):
        lines.append(f"error[{error['code']}]: {error['what']}: {error['why']}")
    lines.extend(_render_peer(peer) for peer in status["wireguard"]["peers"])
    if nat := status.get("nat"):
        lines.append(
            f"nat: {'open' if nat['open'] else 'closed'} on {nat['uplink']} ({nat['backend']}), mtu {nat['mtu']}"
        )
        lines.extend(f"published: {port}" for port in nat["published"])
    if dropped := status["counters"]["dropped"]:
        lines.append("dropped: " + ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items())))
    return lines


def _render_peer(peer: dict[str, Any]) -> str:
    age = peer["handshake_age_seconds"]
    handshake = "no handshake yet" if age is None else f"handshake {age:.0f} s ago"
    return (
        f"peer: {peer['public_key']} at {peer['endpoint']}, {handshake}, "
        f"{peer['rx_bytes']} B in, {peer['tx_bytes']} B out, {peer['profile']}"
    )
