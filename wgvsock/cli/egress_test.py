"""``wgvsock egress test HOST:PORT``: predict whether a connection of the enclave would pass, and by which rule.

There are two answers: one from the configuration file, which need not be in force, and one from the running relay, with
the addresses that it knows for names. No packet is sent, and the name is not looked up.

Exit status: 0 if the connection would pass to every known address, otherwise 1. If the relay is running, its answer
counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import urlencode

from wgvsock.cli.output import note, print_json, put_lines
from wgvsock.cli.status import ask, socket_path
from wgvsock.egress.names import Pins
from wgvsock.egress.policy import Policy, Site
from wgvsock.egress.trial import PROTOCOLS, Destination, outcomes, parse_destination
from wgvsock.errors import ConfigurationError
from wgvsock.telemetry.client import NotRunningError
from wgvsock.text import meant, shortened

_MAX_TEXT: Final = 300
"""Most characters of one value from a relay."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``test`` to the verbs of ``wgvsock egress``."""
    parser = verbs.add_parser(
        "test",
        help="predict whether a connection would pass",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # options before the verb apply as well
    )
    parser.add_argument("destination", metavar="HOST:PORT", help="only HOST for icmp")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="tcp", help="default: %(default)s")
    parser.add_argument(
        "--role",
        choices=("relay", "enclave"),
        default="relay",
        help="the service that the file is for (default: %(default)s)",
    )
    parser.add_argument("--enclave", metavar="NAME", help="default: all")
    parser.add_argument("-c", "--config", metavar="FILE", help="the configuration; default: its usual place")
    parser.add_argument("--socket", metavar="PATH", help="the relay's control socket; without -c, no file is read")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command, and return its exit status."""
    destination = parse_destination(args.destination, args.protocol)
    written = _by_file(args, destination)
    running = _by_relay(args, destination) if args.role == "relay" else None
    if args.json:
        answer = {"destination": str(destination), "protocol": args.protocol}
        print_json({**answer, "configuration": written, "relay": running})
    else:
        put_lines(_lines("configuration", written, destination) + _lines("running relay", running, destination))
    told = written if running is None else running
    found = [outcome for each in (told or {}).values() for outcome in each]
    return 0 if found and all(outcome.get("allowed") is True for outcome in found) else 1


_Outcomes = dict[str, list[dict[str, Any]]]
"""Outcomes by enclave."""


def _by_file(args: argparse.Namespace, destination: Destination) -> _Outcomes | None:
    """The answer of the configuration, or None if only a socket is named."""
    if args.role == "relay" and args.socket and not args.config:
        return None
    places = _relay_places(args) if args.role == "relay" else _enclave_place(args)
    return {
        name: [each.plain() for each in outcomes(policy, Pins(), site, destination, 0.0)]
        for name, (policy, site) in places.items()
    }


def _relay_places(args: argparse.Namespace) -> dict[str, tuple[Policy, Site]]:
    from wgvsock.relay import config as relay

    specs = {spec.name: spec for spec in relay.load(args.config or relay.DEFAULT_PATH).specs()}
    wanted = {name: spec for name, spec in specs.items() if args.enclave in {"", name}}
    if not wanted:
        raise _no_enclave(args.enclave, specs)
    return {
        name: (
            spec.egress.policy(),
            Site(
                relay=frozenset(address.ip for address in spec.interface.addresses),
                resolvers=frozenset(spec.dns.servers or ()),
            ),
        )
        for name, spec in wanted.items()
    }


def _enclave_place(args: argparse.Namespace) -> dict[str, tuple[Policy, Site]]:
    from wgvsock.enclave import config as enclave

    config = enclave.load(args.config or enclave.DEFAULT_PATH)
    policy = config.egress_policy()
    if policy is None:
        raise ConfigurationError(
            "there is no policy to test",
            why="enclave.toml has no table [egress]: only the relay decides what leaves the enclave",
            fix="test the relay's policy: omit --role",
        )
    note("the addresses of the relay and of the name servers are unknown until a relay assigns them")
    return {config.name: (policy, Site())}


def _by_relay(args: argparse.Namespace, destination: Destination) -> _Outcomes | None:
    """The answer of the running relay, or None if none is running or it is not ready."""
    path = args.socket or socket_path("relay", args.config)
    query = {"destination": str(destination), "protocol": args.protocol, "enclave": args.enclave}
    try:
        answer = ask(path, "GET", f"/egress/test?{urlencode(query)}")
    except NotRunningError:
        note("the relay is not running: its own addresses and those of names are unknown")
        return None
    found = answer.get("outcomes")
    if not isinstance(found, dict):
        served = [name for name in answer.get("enclaves") or () if isinstance(name, str)]
        if args.enclave and args.enclave not in served:
            raise _no_enclave(args.enclave, served)
        note("the relay has not set up an enclave's tunnel yet")
        return None
    return {
        name: [outcome for outcome in each if isinstance(outcome, dict)]
        for name, each in found.items()
        if isinstance(each, list)
    }


def _no_enclave(name: str, known: Iterable[str]) -> ConfigurationError:
    known = list(known)
    return ConfigurationError(
        f"there is no enclave {name[:_MAX_TEXT]!r}",
        why=f"the known enclaves are: {shortened(', '.join(known), _MAX_TEXT) or 'none'}",
        fix=meant(name, known),
    )


def _lines(title: str, told: _Outcomes | None, destination: Destination) -> list[str]:
    if told is None:
        return []
    lines = []
    for name, found in told.items():
        lines.append(f"{title}, enclave {shortened(name, _MAX_TEXT)}:")
        for outcome in found:
            address = "" if outcome.get("address") is None else f" ({_text(outcome.get('address'))})"
            lines.append(f"  {destination}{address}: {_text(outcome.get('why'))}")
            unless = outcome.get("unless")
            lines += [f'    unless its address matches "{_text(rule)}"' for rule in unless or ()]
    return lines


def _text(found: object) -> str:
    return shortened(found, _MAX_TEXT) if isinstance(found, str) else "?"
