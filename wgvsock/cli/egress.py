"""``wgvsock egress``: show what an enclave may reach, the addresses of its names, and what was refused.

``test HOST:PORT`` predicts whether a connection would pass.

rules     The policy's rules with the number of flows that each decided, then the other reasons for a verdict.
pinned    Names with their addresses, and how much longer each is allowed.
refused   Names that the enclave may not look up, and addresses that were withheld from it.
denied    Destinations, the latest first, with the name that was looked up for each, and what denies it now.

Exit status: 0, or 3 if the relay is not running.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, Final
from urllib.parse import urlencode

from wgvsock.cli import egress_test
from wgvsock.cli.foreign import at, items, rounded, text
from wgvsock.cli.output import print_json, put_lines
from wgvsock.cli.status import add_socket, ask, socket_path
from wgvsock.errors import ConfigurationError
from wgvsock.text import meant, shortened

_WATCH: Final = 1.0
"""Seconds between two updates."""

_SHOWN: Final = 20
"""The most names, destinations and so on to show to people. ``--json`` has all of them."""

_MAX_TEXT: Final = 300
"""Most characters of one value."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``egress`` to the commands of ``wgvsock``."""
    parser = commands.add_parser(
        "egress",
        help="show what an enclave may reach, and what it was refused",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--enclave", default="", metavar="NAME", help="default: all")
    add_socket(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object (with --watch, one per line)")
    parser.add_argument("--watch", action="store_true", help="print again every second until interrupted")
    parser.set_defaults(run=run)
    egress_test.add_parser(parser.add_subparsers(metavar="test"))


def run(args: argparse.Namespace) -> int:
    """Run the command, and return its exit status."""
    path = args.socket or socket_path("relay", args.config)
    query = f"?{urlencode({'enclave': args.enclave})}" if args.enclave else ""
    while True:
        answer = ask(path, "GET", f"/egress{query}")
        _check(answer, args.enclave)
        if args.json:
            print_json(answer)
        else:
            put_lines(render(answer))
        if not args.watch:
            return 0
        time.sleep(_WATCH)


def _check(answer: dict[str, Any], enclave: str) -> None:
    """Check that the relay serves the enclave.

    Raises:
        ConfigurationError: The relay serves only others.
    """
    found = answer.get("enclaves")
    if isinstance(found, list) and all(isinstance(name, str) for name in found) and found:
        raise ConfigurationError(
            f"there is no enclave {enclave[:_MAX_TEXT]!r}",
            why=f"the relay serves {', '.join(found[:_SHOWN])}",
            fix=meant(enclave, found),
        )


def render(answer: dict[str, Any]) -> list[str]:
    """The relay's answer as text. A value that is missing or has an unexpected type appears as ``?``."""
    lines: list[str] = []
    for enclave in items(answer, "enclaves"):
        lines.append(f"enclave {_text(enclave, 'name')}: {_text(enclave, 'default')} by default")
        rules = items(enclave, "rules")
        lines += [f"  {_text(rule, 'flows'):>8}  {_text(rule, 'rule')}" for rule in rules]
        keys = {_text(rule, "key") for rule in rules}
        flows = enclave.get("flows") if isinstance(enclave, dict) else None
        for key, count in flows.items() if isinstance(flows, dict) else ():
            if key not in keys and count:
                lines.append(f"  {_text(count):>8}  {shortened(str(key), _MAX_TEXT)}")
        lines += _section(enclave, "pinned", _pinned)
        lines += _section(enclave, "refused", _refused)
        lines += _section(enclave, "denied", _denied)
    return lines


def _section(enclave: Any, key: str, line: Any) -> list[str]:
    found = items(enclave, key)
    if not found:
        return []
    more = [f"  and {len(found) - _SHOWN} more: --json"] if len(found) > _SHOWN else []
    return [f"{key}:", *(f"  {line(one)}" for one in found[:_SHOWN]), *more]


def _pinned(one: Any) -> str:
    return f"{_text(one, 'name')} {_text(one, 'address')}, {_seconds(one, 'seconds_left')} left"


def _refused(one: Any) -> str:
    withheld = ", ".join(_text(address) for address in items(one, "withheld"))
    why = f"withheld {withheld}" if withheld else "not allowed"
    return f"{_text(one, 'name')}: {why}, {_text(one, 'questions')} times, last {_seconds(one, 'last_seconds_ago')} ago"


def _denied(one: Any) -> str:
    port = f" {_text(one, 'port')}" if at(one, "port") is not None else ""
    name = f" ({_text(one, 'name')})" if at(one, "name") is not None else ""
    return (
        f"{_text(one, 'protocol')}{port} to {_text(one, 'address')}{name}: {_text(one, 'packets')} times, "
        f"last {_seconds(one, 'last_seconds_ago')} ago, now {_text(one, 'by')}"
    )


def _text(value: Any, *path: str) -> str:
    return text(value, *path, most=_MAX_TEXT)


def _seconds(value: Any, key: str) -> str:
    number = rounded(at(value, key))
    return number if number == "?" else f"{number} s"
